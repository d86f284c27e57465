"""BFAct (Kong & Li, 2022): a Butterworth filter on the activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import equations
from ..evidence.evidence import Evidence
from ..evidence.histogram import Counter, Histogram, quantile
from ..evidence.plan import Plan
from .learning import StreamingDetector, Summary
from .settings import SOURCES, Settings, number_within, one_of
from .shaping import head_logits, in_blocks


@dataclass(frozen=True)
class BFActSettings(Settings):
    """BFAct's hyperparameters.

    >>> BFActSettings(percentile=90, learn_from="val").as_dict()["percentile"]
    90.0

    Raises:
        SettingError: a value out of range, when made.
    """

    not_swept: ClassVar[frozenset[str]] = frozenset({"learn_from"})
    only_judge: ClassVar[frozenset[str]] = frozenset({"order"})

    percentile: float = 95.0
    """Of all in-distribution activations, in percent, within (0, 100): the cut-off T."""
    order: float = 2.0
    """N >= 1, how sharply the filter cuts."""
    learn_from: str = "train"
    """Whose activations T is of: ``train`` or ``val``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("percentile", number_within("percentile", self.percentile, 0, 100))
        self._set("order", number_within("order", self.order, 1, brackets="[)"))
        self._set("learn_from", one_of("learn_from", self.learn_from, SOURCES))

    @property
    def source(self) -> str:
        return self.learn_from

    def plan(self) -> Plan:
        return Plan(activations=True)


class Activations(Summary):
    """How all activations are distributed."""

    def __init__(self) -> None:
        self._counter = Counter()

    def add(self, evidence: Evidence) -> None:
        self._counter.add(evidence.activation)

    def result(self) -> Histogram:
        return self._counter.result()


class BFAct(StreamingDetector[BFActSettings, Tensor]):
    """BFAct (Kong & Li, 2022): the energy of a / sqrt(1 + (a/T)^2N), a Butterworth filter on the activations.

    >>> detector = BFAct(network, percentile=95).fit(train_loader)
    >>> scores = detector.score(images)
    >>> detector.settings = detector.settings.replace(percentile=90)     # T is learnt anew, without another pass
    >>> scores = detector.score(images)

    T is learnt in one pass in constant memory, within 2^-15 (0.003 %) of the exact percentile
    (:func:`~openood_adascale.evidence.histogram.quantile`). Its :attr:`state` is T, () float64.
    """

    settings_class = BFActSettings
    summary_class = Activations

    def learn_summary(self, summary: Histogram, settings: BFActSettings) -> Tensor:
        cutoff = quantile(summary, settings.percentile / 100)
        return torch.tensor(cutoff, dtype=torch.float64, device="cpu")

    def judge(self, evidence: Evidence, settings: BFActSettings, state: Tensor) -> tuple[Tensor, Tensor]:
        preds, scores = [], []
        for block in in_blocks(evidence):
            logits = head_logits(butterworth(block.activation, float(state), settings.order), block)
            preds.append(logits.argmax(1))
            scores.append(equations.energy(logits))
        return torch.cat(preds), torch.cat(scores)


def butterworth(activation: Tensor, cutoff: float, order: float) -> Tensor:
    """a / sqrt(1 + |a/T|^2N), in :func:`~openood_adascale.equations.statistics_dtype`; 0 everywhere for T = 0.

    Args:
        activation: (B, D).
        cutoff: T, of which only the magnitude counts.
        order: N, any real number.
    """
    activation = activation.to(equations.statistics_dtype(activation.device))
    relative = activation.abs() / max(abs(cutoff), torch.finfo(activation.dtype).tiny)
    return activation / (1 + relative.pow(2 * order)).sqrt()

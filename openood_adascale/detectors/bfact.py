"""BFAct (Kong & Li, 2022): a Butterworth filter on the activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack, override

from .. import functional
from ..features.histogram import Histogram, quantile
from ..features.statistics import FeatureRequest, FeatureStatistics
from .base import StreamingDetector
from .settings import SPLITS, InferenceOptions, Settings, number_within, one_of, setting


@dataclass(frozen=True)
class BFActSettings(Settings):
    """Settings of BFAct; see :class:`BFAct`.

    >>> BFActSettings(percentile=90, fit_split="val").as_dict()["percentile"]
    90.0

    Raises:
        SettingError: A value is out of range.
    """

    not_swept: ClassVar[frozenset[str]] = frozenset({"fit_split"})
    score_only: ClassVar[frozenset[str]] = frozenset({"order"})

    percentile: float = setting(95.0, number_within, "(0, 100)")
    order: float = setting(2.0, number_within, "[1, inf)")
    fit_split: str = setting("train", one_of, SPLITS)

    @override
    def request(self) -> FeatureRequest:
        return FeatureRequest(activations=True)


class BFAct(StreamingDetector[BFActSettings, Tensor]):
    """Energy of a / sqrt(1 + (a/T)^2N), a Butterworth filter on the activations (Kong & Li, 2022).

    >>> detector = BFAct(network, percentile=95).fit(train_loader)
    >>> scores = detector.score(images)

    T is fitted in one pass in constant memory, within 2^-15 (0.003 %) of the exact percentile
    (``histogram.quantile``). The fitted ``state`` is T, () float64.

    Args:
        network: Classifier that returns (B, C) logits and ends in a linear layer.
        percentile: Percentile of all ID activations, in percent, in (0, 100), that is the cut-off T.
        order: Order N >= 1 of the filter.
        fit_split: Split of the ID activations, ``"train"`` or ``"val"``.
        inference: ``precision``, ``memory_format`` and ``forward_batch_size``; see :class:`~.settings.Settings`.
    """

    settings_class = BFActSettings

    def __init__(
        self,
        network: nn.Module,
        *,
        percentile: float = 95.0,
        order: float = 2.0,
        fit_split: str = "train",
        **inference: Unpack[InferenceOptions],
    ) -> None:
        super().__init__(network, percentile=percentile, order=order, fit_split=fit_split, **inference)

    @override
    def fit_summary(self, summary: Histogram, settings: BFActSettings) -> Tensor:
        cutoff = quantile(summary, settings.percentile / 100)
        return torch.tensor(cutoff, dtype=torch.float64, device="cpu")

    @override
    def score_statistics(
        self, statistics: FeatureStatistics, settings: BFActSettings, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        predictions, scores = [], []
        for block in statistics.blocks():
            logits = block.head_logits(butterworth(block.activation, float(state), settings.order))
            predictions.append(logits.argmax(1))
            scores.append(functional.energy(logits))
        return torch.cat(predictions), torch.cat(scores)


def butterworth(activation: Tensor, cutoff: float, order: float) -> Tensor:
    """Return a / sqrt(1 + |a/T|^2N) in :func:`~openood_adascale.functional.statistics_dtype`; 0 everywhere for T = 0.

    Args:
        activation: (B, D).
        cutoff: T; only its magnitude counts.
        order: N, any real number.
    """
    activation = activation.to(functional.statistics_dtype(activation.device))
    relative = activation.abs() / max(abs(cutoff), torch.finfo(activation.dtype).tiny)
    return activation / (1 + relative.pow(2 * order)).sqrt()

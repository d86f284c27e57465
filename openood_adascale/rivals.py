"""The methods that AdaSCALE is compared with, behind the same interface."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as nnF

from . import functional as F
from .detector import Detector
from .evidence import Evidence, Plan
from .histogram import Histogram, histogram, lower_edge, nearest_edge, quantile
from .settings import SettingError, Settings, number_within, one_of, unscramble, whole_number

LEARN_FROM = ("train", "val")
OPTFS_SCORES = ("vanilla", "energy")

# How many activations are shaped at a time, so that a search over many images needs little more memory.
_BLOCK = 2**22


class MSP(Detector[Settings]):
    """Maximum softmax probability (Hendrycks & Gimpel, ICLR 2017)."""

    def judge(self, evidence: Evidence, settings: Settings, state: Any) -> tuple[Tensor, Tensor]:
        probability, pred = evidence.logits.softmax(1).max(1)
        return pred, probability


class Energy(Detector[Settings]):
    """Energy of the plain logits (Liu et al., NeurIPS 2020); OpenOOD's ``ebo``."""

    def judge(self, evidence: Evidence, settings: Settings, state: Any) -> tuple[Tensor, Tensor]:
        return evidence.logits.argmax(1), F.energy(
            evidence.logits.to(F.statistics_dtype(evidence.logits.device))
        )


@dataclass(frozen=True)
class FixedPercentileSettings(Settings):
    """Settings of the methods whose percentile is the same for every image."""

    percentile: float = 85.0
    """In percent, within (0, 100)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("percentile", number_within("percentile", self.percentile, 0, 100))

    def plan(self) -> Plan:
        return Plan((self.percentile, self.percentile))


class SCALE(Detector[FixedPercentileSettings]):
    """SCALE (Xu et al., ICLR 2024): the activation scaled by exp(r) at one percentile for all images."""

    settings_class = FixedPercentileSettings
    default_sweep: ClassVar[dict[str, list[Any]]] = {"percentile_list": [65, 70, 75, 80, 85, 90, 95]}

    def judge(
        self, evidence: Evidence, settings: FixedPercentileSettings, state: Any
    ) -> tuple[Tensor, Tensor]:
        logits = F.scale_activation_logits(
            evidence.logits, evidence.head.bias, _fixed_factor(evidence, settings)
        )
        return logits.argmax(1), F.energy(logits)


def _fixed_factor(evidence: Evidence, settings: FixedPercentileSettings) -> Tensor:
    assert evidence.total is not None
    return evidence.scaling_factor(torch.full_like(evidence.total, settings.percentile))


@dataclass(frozen=True)
class LTSSettings(FixedPercentileSettings):
    """LTS's hyperparameter.

    Raises:
        SettingError: a value out of range, when made.
    """

    percentile: float = 95.0
    """In percent, within (0, 100): S compares all activations with the largest 5 %."""


class LTS(Detector[LTSSettings]):
    """Logit scaling (Djurisic et al., arXiv 2409.01175): z·S², with S = Σ a⁺ / Σ (its largest 5 %).

    The same as AdaSCALE-L with p_min = p_max. It learns nothing.
    """

    settings_class = LTSSettings

    def judge(self, evidence: Evidence, settings: LTSSettings, state: Any) -> tuple[Tensor, Tensor]:
        logits = F.scale_logits(evidence.logits, _fixed_factor(evidence, settings))
        return logits.argmax(1), F.energy(logits)


@dataclass(frozen=True)
class BFActSettings(Settings):
    """BFAct's hyperparameters.

    Raises:
        SettingError: a value out of range, when made.
    """

    not_swept: ClassVar[frozenset[str]] = frozenset({"learn_from"})

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
        one_of("learn_from", self.learn_from, LEARN_FROM)

    def learns_from(self) -> str:
        return self.learn_from

    def plan(self) -> Plan:
        return Plan(activations=True)


class BFAct(Detector[BFActSettings]):
    """BFAct (Kong & Li, 2022): the energy of a / sqrt(1 + (a/T)^2N), a Butterworth filter on the activations.

    T is learnt in one pass in constant memory, within 2^-15 (0.003 %) of the exact percentile
    (:func:`~openood_adascale.histogram.quantile`). Its :attr:`state` is T, () float64.
    """

    settings_class = BFActSettings
    needs_fit = True
    streams = True

    def summarise(self, batches: Iterable[Evidence]) -> Histogram:
        return histogram((_activation(evidence), None) for evidence in batches)

    def learn(self, evidence: Histogram, settings: BFActSettings) -> Tensor:
        return torch.tensor(quantile(evidence, settings.percentile / 100), dtype=torch.float64)

    def judge(self, evidence: Evidence, settings: BFActSettings, state: Tensor) -> tuple[Tensor, Tensor]:
        preds, scores = [], []
        for block in _blocks(evidence):
            logits = _head_logits(butterworth(_activation(block), float(state), settings.order), block)
            preds.append(logits.argmax(1))
            scores.append(F.energy(logits))
        return torch.cat(preds), torch.cat(scores)


def butterworth(activation: Tensor, cutoff: float, order: float) -> Tensor:
    """a / sqrt(1 + |a/T|^2N), in :func:`~openood_adascale.functional.statistics_dtype`; 0 everywhere for T = 0.

    Args:
        activation: (B, D).
        cutoff: T, of which only the magnitude counts.
        order: N, any real number.
    """
    activation = activation.to(F.statistics_dtype(activation.device))
    relative = activation.abs() / max(abs(cutoff), torch.finfo(activation.dtype).tiny)
    return activation / (1 + relative.pow(2 * order)).sqrt()


@dataclass(frozen=True)
class OptFSSettings(Settings):
    """OptFS's hyperparameters.

    Raises:
        SettingError: a value out of range, when made.
    """

    not_swept: ClassVar[frozenset[str]] = frozenset({"learn_from"})

    bins: int = 100
    """K >= 1, in how many pieces θ is constant."""
    percentile: tuple[float, float] = (0.1, 99.9)
    """Of all in-distribution activations, in percent, 0 < low < high < 100: where the bins begin and end."""
    score: str = "vanilla"
    """``vanilla``: the shaped activation's share in the logit of the predicted class; ``energy``: its energy."""
    learn_from: str = "train"
    """Whose activations θ is learnt from: ``train`` or ``val``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("bins", whole_number("bins", self.bins, 1))
        given = unscramble(self.percentile)
        allowed = "a pair [low, high] with 0 < low < high < 100"
        try:
            self._set_percentile_pair()
        except SettingError:
            raise SettingError("percentile", given, allowed) from None
        if self.percentile[0] == self.percentile[1]:
            raise SettingError("percentile", given, allowed)
        one_of("score", self.score, OPTFS_SCORES)
        one_of("learn_from", self.learn_from, LEARN_FROM)

    def learns_from(self) -> str:
        return self.learn_from

    def plan(self) -> Plan:
        return Plan(activations=True)


class OptFS(Detector[OptFSSettings]):
    """OptFS (Zhao et al., ICLR 2024, arXiv 2402.00865): a learnt piecewise constant θ(a) multiplies each activation.

    One pass in constant memory serves any number of bins, any percentiles and both scores. The bins' edges are
    those of :mod:`~openood_adascale.histogram`, the nearest to the exact ones: off by at most 2^-14 (0.006 %) of
    the larger magnitude of the order statistics at the two ends. What is learnt is exact for these edges.

    Its :attr:`state` is ``edges``, (K + 1,) float32, ascending, and ``theta``, (K,) float64, of norm 1000.
    """

    settings_class = OptFSSettings
    needs_fit = True
    streams = True

    def summarise(self, batches: Iterable[Evidence]) -> Histogram:
        return histogram((_activation(evidence), contributions(evidence)) for evidence in batches)

    def learn(self, evidence: Histogram, settings: OptFSSettings) -> dict[str, Tensor]:
        assert evidence.weights is not None
        low, high = (quantile(evidence, percent / 100) for percent in settings.percentile)
        edges = low + (high - low) * torch.linspace(0, 1, settings.bins + 1, dtype=torch.float64)
        edges[-1] = high
        edge_bins = nearest_edge(edges)
        # 0 is below all edges, K + 1 above.
        place = torch.searchsorted(edge_bins, evidence.bins, right=True)
        importance = torch.zeros(settings.bins + 2, dtype=torch.float64)
        importance = importance.index_add(0, place, evidence.weights)[1:-1]
        theta = 1000 * importance / importance.norm().clamp(min=torch.finfo(torch.float64).tiny)
        return {"edges": lower_edge(edge_bins), "theta": theta}

    def judge(
        self, evidence: Evidence, settings: OptFSSettings, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        scores = []
        for block in _blocks(evidence):
            theta = piecewise_constant(_activation(block), state["edges"], state["theta"])
            if settings.score == "vanilla":
                scores.append((contributions(block) * theta).sum(1))
            else:
                scores.append(F.energy(_head_logits(_activation(block).to(theta.dtype) * theta, block)))
        return evidence.logits.argmax(1), torch.cat(scores)


def contributions(evidence: Evidence) -> Tensor:
    """(N, D) W[ŷ]_i·a_i: what each activation adds to the logit of the predicted class ŷ."""
    activation = _activation(evidence)
    dtype = F.statistics_dtype(activation.device)
    weight = evidence.head.weight.to(activation.device)[evidence.logits.argmax(1)]
    return weight.to(dtype) * activation.to(dtype)


def piecewise_constant(activation: Tensor, edges: Tensor, values: Tensor) -> Tensor:
    """θ(a): ``values[k]`` from ``edges[k]`` up to but without ``edges[k + 1]``, 0 outside of all edges.

    Args:
        activation: (B, D), compared as float32 numbers.
        edges: (K + 1,) float32, ascending.
        values: (K,).

    Returns:
        (B, D) in :func:`~openood_adascale.functional.statistics_dtype`.
    """
    device = activation.device
    padded = nnF.pad(values.to(device, F.statistics_dtype(device)), (1, 1))
    limit = torch.finfo(torch.float32)
    rounded = activation.clamp(limit.min, limit.max).float()
    return padded[torch.searchsorted(edges.to(device), rounded.contiguous(), right=True)]


def _activation(evidence: Evidence) -> Tensor:
    assert evidence.activation is not None
    return evidence.activation


def _blocks(evidence: Evidence) -> Iterable[Evidence]:
    rows = max(1, _BLOCK // max(1, evidence.size))
    return (evidence[start : start + rows] for start in range(0, len(evidence), rows))


def _head_logits(shaped: Tensor, evidence: Evidence) -> Tensor:
    head = evidence.head
    return nnF.linear(shaped, head.weight.to(shaped), head.bias.to(shaped))

"""OptFS (Zhao et al., ICLR 2024): a learnt piecewise constant function shapes each activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from .. import equations
from ..errors import SettingError
from ..evidence.evidence import Evidence
from ..evidence.histogram import Counter, Histogram, lower_edge, nearest_edge, quantile
from ..evidence.plan import Plan
from .learning import StreamingDetector, Summary
from .settings import SOURCES, Settings, one_of, percentile_pair, whole_number
from .shaping import head_logits, in_blocks

SCORES = ("vanilla", "energy")


@dataclass(frozen=True)
class OptFSSettings(Settings):
    """OptFS's hyperparameters.

    >>> OptFSSettings(bins=50, percentile="[1, 99]").percentile
    (1.0, 99.0)

    Raises:
        SettingError: a value out of range, when made.
    """

    not_swept: ClassVar[frozenset[str]] = frozenset({"learn_from"})
    only_judge: ClassVar[frozenset[str]] = frozenset({"score"})

    bins: int = 100
    """K, from 1 to 2**20: in how many pieces θ is constant."""
    percentile: tuple[float, float] = (0.1, 99.9)
    """Of all in-distribution activations, in percent, 0 < low < high < 100: where the bins begin and end."""
    score: str = "vanilla"
    """``vanilla``: the shaped activation's share in the logit of the predicted class; ``energy``: its energy."""
    learn_from: str = "train"
    """Whose activations θ is learnt from: ``train`` or ``val``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("bins", whole_number("bins", self.bins, 1, 2**20))
        allowed = "a pair [low, high] with 0 < low < high < 100"
        low, high = percentile_pair("percentile", self.percentile, allowed)
        if low == high:
            raise SettingError("percentile", [low, high], allowed)
        self._set("percentile", (low, high))
        self._set("score", one_of("score", self.score, SCORES))
        self._set("learn_from", one_of("learn_from", self.learn_from, SOURCES))

    @property
    def source(self) -> str:
        return self.learn_from

    def plan(self) -> Plan:
        return Plan(activations=True)


class WeightedActivations(Summary):
    """How all activations are distributed, weighted with what each adds to the predicted class's logit."""

    def __init__(self) -> None:
        self._counter = Counter()

    def add(self, evidence: Evidence) -> None:
        self._counter.add(evidence.activation, contributions(evidence))

    def result(self) -> Histogram:
        return self._counter.result()


class OptFS(StreamingDetector[OptFSSettings, dict[str, Tensor]]):
    """OptFS (Zhao et al., ICLR 2024, arXiv 2402.00865): a learnt piecewise constant θ(a) multiplies each activation.

    >>> detector = OptFS(network, bins=50).fit(train_loader)
    >>> detector.state["theta"].shape, detector.score(images).shape
    (torch.Size([50]), torch.Size([24]))

    One pass in constant memory serves any number of bins, any percentiles and both scores. The bins' edges are
    those of :mod:`~openood_adascale.evidence.histogram`, the nearest to the exact ones: off by at most 2^-14 (0.006 %) of
    the larger magnitude of the order statistics at the two ends. What is learnt is exact for these edges.

    Its :attr:`state` is ``edges``, (K + 1,) float32, ascending, and ``theta``, (K,) float64, of norm 1000.
    """

    settings_class = OptFSSettings
    summary_class = WeightedActivations

    def learn_summary(self, summary: Histogram, settings: OptFSSettings) -> dict[str, Tensor]:
        weights = summary.summed_weights
        low, high = (quantile(summary, percent / 100) for percent in settings.percentile)
        edges = low + (high - low) * torch.linspace(
            0, 1, settings.bins + 1, dtype=torch.float64, device="cpu"
        )
        edges[-1] = high
        edge_bins = nearest_edge(edges)
        # 0 is below all edges, K + 1 above.
        place = torch.searchsorted(edge_bins, summary.bins, right=True)
        importance = weights.new_zeros(settings.bins + 2)
        importance = importance.index_add(0, place, weights)[1:-1]
        theta = 1000 * importance / importance.norm().clamp(min=torch.finfo(torch.float64).tiny)
        return {"edges": lower_edge(edge_bins), "theta": theta}

    def judge(
        self, evidence: Evidence, settings: OptFSSettings, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        scores = []
        for block in in_blocks(evidence):
            theta = piecewise_constant(block.activation, state["edges"], state["theta"])
            if settings.score == "vanilla":
                scores.append((contributions(block) * theta).sum(1))
            else:
                scores.append(equations.energy(head_logits(block.activation.to(theta.dtype) * theta, block)))
        return evidence.logits.argmax(1), torch.cat(scores)


def contributions(evidence: Evidence) -> Tensor:
    """(N, D) W[ŷ]_i·a_i: what each activation adds to the logit of the predicted class ŷ."""
    activation = evidence.activation
    dtype = equations.statistics_dtype(activation.device)
    weight = evidence.head.weight.to(activation.device)[evidence.logits.argmax(1)]
    return weight.to(dtype) * activation.to(dtype)


def piecewise_constant(activation: Tensor, edges: Tensor, values: Tensor) -> Tensor:
    """θ(a): ``values[k]`` from ``edges[k]`` up to but without ``edges[k + 1]``, 0 outside of all edges.

    Args:
        activation: (B, D), compared as float32 numbers.
        edges: (K + 1,) float32, ascending.
        values: (K,).

    Returns:
        (B, D) in :func:`~openood_adascale.equations.statistics_dtype`.
    """
    device = activation.device
    padded = functional.pad(values.to(device, equations.statistics_dtype(device)), (1, 1))
    limit = torch.finfo(torch.float32)
    rounded = activation.clamp(limit.min, limit.max).float()
    return padded[torch.searchsorted(edges.to(device), rounded.contiguous(), right=True)]

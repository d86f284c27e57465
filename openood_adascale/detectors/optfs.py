"""OptFS (Zhao et al., ICLR 2024): a fitted piecewise constant function shapes each activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack, override

from .. import functional
from ..errors import MissingFeatureError
from ..features.histogram import Counter, Histogram, lower_edge, nearest_edge, quantile
from ..features.statistics import FeatureRequest, FeatureStatistics
from .base import StreamingDetector
from .settings import SPLITS, InferenceOptions, Settings, one_of, percentile_pair, setting, whole_number

SCORES = ("vanilla", "energy")


@dataclass(frozen=True)
class OptFSSettings(Settings):
    """Settings of OptFS; see :class:`OptFS`.

    >>> OptFSSettings(bins=50, percentile="[1, 99]").percentile
    (1.0, 99.0)

    Raises:
        SettingError: A value is out of range.
    """

    not_swept: ClassVar[frozenset[str]] = frozenset({"fit_split"})
    score_only: ClassVar[frozenset[str]] = frozenset({"score"})

    bins: int = setting(100, whole_number, 1, 2**20)
    percentile: tuple[float, float] = setting((0.1, 99.9), percentile_pair, True)
    score: str = setting("vanilla", one_of, SCORES)
    fit_split: str = setting("train", one_of, SPLITS)

    @override
    def request(self) -> FeatureRequest:
        return FeatureRequest(activations=True)


class OptFS(StreamingDetector[OptFSSettings, dict[str, Tensor]]):
    """A fitted piecewise constant θ(a) multiplies each activation (Zhao et al., ICLR 2024, arXiv 2402.00865).

    >>> detector = OptFS(network, bins=50).fit(train_loader)
    >>> detector.state["theta"].shape, detector.score(images).shape
    (torch.Size([50]), torch.Size([24]))

    One pass in constant memory serves any number of bins, any percentiles and both scores. The bins' edges are the
    nearest ones of the histogram: off by at most 2^-14 (0.006 %) of the larger magnitude of
    the order statistics at the two ends. θ is exact for these edges.

    The fitted ``state`` is ``edges``, (K + 1,) float32, ascending, and ``theta``, (K,) float64, of norm 1000.

    Args:
        network: Classifier that returns (B, C) logits and ends in a linear layer.
        bins: Number K of pieces on which θ is constant, from 1 to 2**20.
        percentile: Percentiles of all ID activations at which the bins begin and end, in percent, 0 < low < high < 100.
        score: ``"vanilla"``, the shaped activation's contribution to the logit of the predicted class, or ``"energy"``.
        fit_split: Split of the ID activations, ``"train"`` or ``"val"``.
        inference: ``precision``, ``memory_format`` and ``forward_batch_size``; see :class:`~.settings.Settings`.
    """

    settings_class = OptFSSettings

    def __init__(
        self,
        network: nn.Module,
        *,
        bins: int = 100,
        percentile: tuple[float, float] = (0.1, 99.9),
        score: str = "vanilla",
        fit_split: str = "train",
        **inference: Unpack[InferenceOptions],
    ) -> None:
        super().__init__(
            network, bins=bins, percentile=percentile, score=score, fit_split=fit_split, **inference
        )

    @override
    def add_to_summary(self, counter: Counter, statistics: FeatureStatistics) -> None:
        counter.add(statistics.activation, contributions(statistics))

    @override
    def fit_summary(self, summary: Histogram, settings: OptFSSettings) -> dict[str, Tensor]:
        if summary.weights is None:
            raise MissingFeatureError("histogram: it was counted without weights")
        low, high = (quantile(summary, percent / 100) for percent in settings.percentile)
        edges = low + (high - low) * torch.linspace(
            0, 1, settings.bins + 1, dtype=torch.float64, device="cpu"
        )
        edges[-1] = high
        edge_bins = nearest_edge(edges)
        # 0 is below all edges, K + 1 above.
        place = torch.searchsorted(edge_bins, summary.bins, right=True)
        importance = summary.weights.new_zeros(settings.bins + 2)
        importance = importance.index_add(0, place, summary.weights)[1:-1]
        theta = 1000 * importance / importance.norm().clamp(min=torch.finfo(torch.float64).tiny)
        return {"edges": lower_edge(edge_bins), "theta": theta}

    @override
    def score_statistics(
        self, statistics: FeatureStatistics, settings: OptFSSettings, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        scores = []
        for block in statistics.blocks():
            theta = piecewise_constant(block.activation, state["edges"], state["theta"])
            if settings.score == "vanilla":
                scores.append((contributions(block) * theta).sum(1))
            else:
                scores.append(functional.energy(block.head_logits(block.activation.to(theta.dtype) * theta)))
        return statistics.logits.argmax(1), torch.cat(scores)


def contributions(statistics: FeatureStatistics) -> Tensor:
    """Return (N, D) W[ŷ]_i·a_i, the contribution of each activation to the logit of the predicted class ŷ."""
    activation = statistics.activation
    dtype = functional.statistics_dtype(activation.device)
    weight = statistics.head.weight.to(activation.device)[statistics.logits.argmax(1)]
    return weight.to(dtype) * activation.to(dtype)


def piecewise_constant(activation: Tensor, edges: Tensor, values: Tensor) -> Tensor:
    """Return θ(a): ``values[k]`` in [``edges[k]``, ``edges[k + 1]``), 0 outside of all edges.

    Args:
        activation: (B, D), compared as float32 numbers.
        edges: (K + 1,) float32, ascending.
        values: (K,).

    Returns:
        (B, D) in :func:`~openood_adascale.functional.statistics_dtype`.
    """
    device = activation.device
    padded = nn.functional.pad(values.to(device, functional.statistics_dtype(device)), (1, 1))
    limit = torch.finfo(torch.float32)
    rounded = activation.clamp(limit.min, limit.max).float()
    return padded[torch.searchsorted(edges.to(device), rounded.contiguous(), right=True)]

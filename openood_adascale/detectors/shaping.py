"""Shared parts of the methods that shape activations."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ..features.statistics import FeatureStatistics

_BLOCK = (
    2**22
)  # activations that are shaped at a time, so that a search over many images takes little more memory


def in_blocks(statistics: FeatureStatistics) -> Iterator[FeatureStatistics]:
    """Yield ``statistics`` in blocks of rows that take little memory to shape."""
    rows = max(1, _BLOCK // max(1, statistics.size))
    return (statistics[start : start + rows] for start in range(0, len(statistics), rows))


def head_logits(shaped: Tensor, statistics: FeatureStatistics) -> Tensor:
    """Return the head's (N, C) output on (N, D) shaped activations, in their dtype."""
    head = statistics.head
    return nn.functional.linear(shaped, head.weight.to(shaped), head.bias.to(shaped))

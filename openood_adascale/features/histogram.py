"""Histogram of all activations of a loader, in one pass and constant memory.

A bin holds the float32 numbers that agree in sign, exponent and the first :data:`MANTISSA_BITS` bits of the
mantissa. All numbers of a bin agree to a relative 2^-14, from the smallest to the largest magnitude, so no range has to be
known beforehand.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MANTISSA_BITS = 14
_SHIFT = 23 - MANTISSA_BITS
_ORIGIN = 1 << (31 - _SHIFT)  # the bin of zero
BINS = 2 * _ORIGIN
_FLOAT32 = torch.finfo(torch.float32)
_LAST = _ORIGIN + (0x7F7FFFFF >> _SHIFT)
"""The bin of the largest float32 number."""


class Histogram(NamedTuple):
    """Counts and weights of the activations in each bin that is not empty."""

    bins: Tensor
    """(M,) int64 bins in ascending order; see :func:`bin_of`."""
    counts: Tensor
    """(M,) int64."""
    weights: Tensor | None
    """(M,) float64 sums of the weights (None if counted without)."""


def bin_of(values: Tensor) -> Tensor:
    """Return the bin of each value, rounded to float32 and clamped to its range: int64, in the order of the values."""
    # Adding zero makes -0 a +0.
    bits = (values.clamp(_FLOAT32.min, _FLOAT32.max).float() + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers in the order of the numbers
    return (ordered >> _SHIFT).long() + _ORIGIN


def lower_edge(bins: Tensor) -> Tensor:
    """Return the smallest float32 number in each bin."""
    return _float32((bins - _ORIGIN) << _SHIFT)


def middle(bins: Tensor) -> Tensor:
    """Return a float64 within 2^-15 of every number of the bin, relative to it (2^-126 absolute next to zero)."""
    first = (bins - _ORIGIN) << _SHIFT
    number = (_float32(first).double() + _float32(first + (1 << _SHIFT) - 1).double()) / 2
    return torch.where(number.abs() < _FLOAT32.tiny, 0.0, number)


def nearest_edge(values: Tensor) -> Tensor:
    """Return the bin whose lower edge is nearest in the order of float32 numbers, within a relative 2^-15."""
    bins = bin_of(values)
    first = (bins - _ORIGIN) << _SHIFT
    halfway = _float32(first + (1 << (_SHIFT - 1)))
    return (bins + (values >= halfway)).clamp(max=_LAST)


def _float32(ordered: Tensor) -> Tensor:
    ordered = ordered.to(torch.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)


class Counter:
    """Counts batches of activations; counts do not depend on the batches' order or size, weights only by rounding.

    It takes 8 bytes per bin (64 MiB), and twice that with weights.
    """

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._weights: Tensor | None = None

    def add(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Count ``values`` of any shape, with a weight for each of them or None, consistently over all calls."""
        # mps has no float64.
        device = values.device if values.device.type != "mps" else torch.device("cpu")
        if self._counts is None:
            self._counts = torch.zeros(BINS, dtype=torch.int64, device=device)
            if weights is not None:
                self._weights = torch.zeros(BINS, dtype=torch.float64, device=device)
        bins = bin_of(values).flatten().to(self._counts.device)
        one = torch.ones((), dtype=torch.int64, device=bins.device)
        self._counts.index_add_(0, bins, one.expand(len(bins)))
        if self._weights is not None and weights is not None:
            self._weights.index_add_(0, bins, weights.flatten().to(self._weights))

    def result(self) -> Histogram:
        """Return the histogram so far, on the CPU; raise ValueError if nothing was counted."""
        if self._counts is None:
            raise ValueError("activations: nothing was counted; expected at least one batch")
        hit = self._counts.nonzero().flatten()
        weights = None if self._weights is None else self._weights[hit].cpu()
        return Histogram(hit.cpu(), self._counts[hit].cpu(), weights)


def quantile(counted: Histogram, fraction: float) -> float:
    """Return a quantile, in [0, 1], of the counted values, linear between order statistics as ``numpy.quantile``.

    Off by at most 2^-15 (0.003 %) of the larger magnitude of the two order statistics around it.
    """
    reached = counted.counts.cumsum(0)
    place = fraction * (int(reached[-1]) - 1)
    below = int(place)
    ranks = reached.new_tensor([below, min(below + 1, int(reached[-1]) - 1)])
    low, high = middle(counted.bins[torch.searchsorted(reached, ranks, right=True)]).tolist()
    return low + (place - below) * (high - low)

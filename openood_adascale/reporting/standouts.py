"""Which images of a set stand out: those that fooled a method, those it would have refused, and those on which two methods
disagree. Of numbers alone."""

from __future__ import annotations

import numpy as np

from ..metrics import score_kept

KEPT = 0.95
"""The share of the known images that a threshold keeps."""


def threshold(known: np.ndarray) -> float:
    """The largest of (N,) known images' scores that at least :data:`KEPT` of them reach."""
    return score_kept(np.sort(known), KEPT)


def ranks(known: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) how many of the known images score lower, in percent; of those that score the same, half."""
    ordered = np.sort(known)
    lower, not_higher = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    found: np.ndarray = 50 * (lower + not_higher) / len(ordered)
    return found


def highest(scores: np.ndarray, most: int) -> np.ndarray:
    """Places of the ``most`` largest scores, the largest first, of equal ones the first."""
    return np.argsort(-scores, kind="stable")[:most]


def refused(scores: np.ndarray, least: float, most: int) -> np.ndarray:
    """Places of the ``most`` smallest scores below ``least``, the smallest first."""
    order = np.argsort(scores, kind="stable")[:most]
    return order[scores[order] < least]


def disagreement(one: np.ndarray, other: np.ndarray, most: int) -> np.ndarray:
    """Places of the ``most`` images that ``one`` ranks highest above ``other``, the largest difference first.

    Args:
        one, other: (N,) :func:`ranks` of the same images by two methods.
    """
    above = one - other
    order = np.argsort(-above, kind="stable")[:most]
    return order[above[order] > 0]

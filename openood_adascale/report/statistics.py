"""Bootstrap confidence intervals of FPR@95 and AUROC over images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

METRICS = ("FPR@95", "AUROC")
RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 64  # resamples at a time, so that the weights of 100,000 images take 6 MB


@dataclass(frozen=True)
class Bootstrap:
    """Metrics of every resample, in percent."""

    values: dict[tuple[str, str, str], np.ndarray]
    """By method, row (an OOD set, ``nearood`` or ``farood``) and metric: (R,) float64, NaN for an empty resample."""

    def interval(self, method: str, row: str, metric: str) -> tuple[float, float] | None:
        """Return the 95 % confidence interval in percent, or None if there are no scores."""
        return _interval(self.values.get((method, row, metric)))

    def difference(self, one: str, other: str, row: str, metric: str) -> tuple[float, float] | None:
        """Return the 95 % confidence interval of the paired difference ``one`` − ``other`` in points."""
        first, second = (self.values.get((method, row, metric)) for method in (one, other))
        return None if first is None or second is None else _interval(first - second)

    def equal(self, one: str, other: str, row: str, metric: str) -> bool:
        """Return True if the interval of the difference contains 0."""
        found = self.difference(one, other, row, metric)
        return found is not None and found[0] <= 0 <= found[1]


def _interval(values: np.ndarray | None) -> tuple[float, float] | None:
    if values is None or np.isnan(values).all():
        return None
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Bootstrap:
    """Resample the images of every set and recompute the metrics of all methods on the same resamples.

    Each image's number of occurrences is drawn from a Poisson distribution with mean 1, which approximates drawing
    with replacement. The weights are shared by the methods, so that differences between methods are paired, and the
    ID images are shared by the OOD sets, so that averages over sets are right.

    Args:
        scores: By method, then by set (``id`` and OOD sets): (N,) float64, larger is more in-distribution. Image i of
            a set is the same for all methods.
        near: Names of the near-OOD sets, for the row ``nearood``.
        far: Names of the far-OOD sets, for the row ``farood``.
        resamples: Number of resamples R.
        seed: Of the random weights.
    """
    methods = {name: SortedScores(sets) for name, sets in scores.items() if "id" in sets}
    counts = {key: len(values) for sets in scores.values() for key, values in sets.items()}
    parts: defaultdict[tuple[str, str, str], list[np.ndarray]] = defaultdict(list)
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = {key: rng.poisson(1, (count, size)).astype(np.uint8) for key, count in counts.items()}
        for name, method in methods.items():
            for key, pair in method.metrics(weights).items():
                for metric, found in zip(METRICS, pair, strict=True):
                    parts[name, key, metric].append(found)
    values = {place: np.concatenate(found) for place, found in parts.items()}
    for name, method in methods.items():
        for row, sets in (("nearood", near), ("farood", far)):
            if sets and set(sets) <= set(method.ood):
                for metric in METRICS:
                    values[name, row, metric] = np.mean([values[name, key, metric] for key in sets], 0)
    return Bootstrap(values)


class SortedScores:
    """Scores of one method, sorted once for all resamples."""

    def __init__(self, scores: Mapping[str, np.ndarray]) -> None:
        self._id = np.argsort(scores["id"], kind="stable")
        ascending = scores["id"][self._id]
        self.ood: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for key, values in scores.items():
            if key != "id":
                order = np.argsort(values, kind="stable")
                below, reached = (
                    np.searchsorted(ascending, values[order], side) for side in ("left", "right")
                )
                self.ood[key] = order, below, reached

    def metrics(self, weights: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return (FPR@95, AUROC) by OOD set, (R,) each in percent.

        Args:
            weights: By set, (N, R): the number of occurrences of each image in each resample.
        """
        own = weights["id"][self._id]
        # flagged[i, r]: weight of the i ID images with the smallest scores.
        flagged = np.zeros((len(own) + 1, own.shape[1]), np.float32)
        np.cumsum(own, 0, out=flagged[1:])
        found = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            for key, (order, below, reached) in self.ood.items():
                other = weights[key][order]
                caught = np.cumsum(other, 0, dtype=np.int32)
                total = caught[-1]
                # The threshold is the first OOD score that catches 95 %, ties included.
                place = np.minimum((20 * caught < 19 * total).sum(0), len(other) - 1)
                fpr = flagged[reached[place], np.arange(len(place))] / flagged[-1]
                fpr[total == 0] = np.nan
                # An OOD image ranks right of the ID images that score lower: these are the errors.
                wrong = np.einsum("nr,nr->r", flagged[below], other, dtype=np.float64)
                if not np.array_equal(below, reached):
                    wrong = (wrong + np.einsum("nr,nr->r", flagged[reached], other, dtype=np.float64)) / 2
                auroc = 1 - wrong / (flagged[-1].astype(np.float64) * total)
                found[key] = 100 * fpr.astype(np.float64), 100 * auroc
        return found

"""Detectors of one network over a benchmark's loaders, each of which is read once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pandas as pd
from torch import Tensor

from ..detectors.base import Detector, FittedDetector, StreamingDetector
from ..detectors.settings import warn_if_doubtful
from ..features.collect import LabelledStatistics, iterate_statistics
from ..features.histogram import Counter
from ..features.loading import plain_labels
from ..features.statistics import FeatureRequest, FeatureStatistics
from .accuracy import Accuracy
from .benchmark import Benchmark, naming
from .per_image import images_of
from .result import Parts

AnyDetector: TypeAlias = Detector[Any, Any]


@runtime_checkable
class Adaptive(Protocol):
    """A method with a percentile of its own for each image, as AdaSCALE has it."""

    def percentiles_from(self, statistics: FeatureStatistics) -> Tensor:
        """Return (N,) percentiles p in percent."""

    def oodness_from(self, statistics: FeatureStatistics) -> Tensor:
        """Return (N,) Q'."""


class OnePass:
    """Detectors of one network with the same inference settings, by name."""

    def __init__(
        self, detectors: Mapping[str, AnyDetector], benchmark: Benchmark, progress: bool | None
    ) -> None:
        self._detectors = detectors
        self._benchmark = benchmark
        self._progress = progress
        first = next(iter(detectors.values()))
        self._inference = first.settings.inference
        self._extractor = first.extractor
        for detector in detectors.values():
            detector.extractor = self._extractor

    def prepare(
        self, search: bool | None, sweep: Mapping[str, Sequence[Any]] | None
    ) -> dict[str, pd.DataFrame]:
        """Search or fit the detectors that need it, and return the search results by name."""
        searching = {
            name: detector
            for name, detector in self._detectors.items()
            if (sweep is not None or detector.default_sweep)
            and (search if search is not None else sweep is not None or not detector.is_fitted)
        }
        unfitted = [
            detector
            for name, detector in self._detectors.items()
            if name not in searching and isinstance(detector, FittedDetector) and detector.state is None
        ]
        # Missing loaders must raise before the first pass.
        for name in ("val", "ood_val") if searching else ():
            self._benchmark.loader(name)
        self._fit_on_train([*searching.values(), *unfitted])
        on_val = [detector for detector in unfitted if detector.settings.split == "val"]
        requests = [_search_request(detector, sweep) for detector in searching.values()]
        if not requests and not on_val:
            return {}
        fitting = [detector.settings.request() for detector in on_val]
        id_val = self._collected("val", "ID validation", [*requests, *fitting])
        for detector in on_val:
            detector.fit_statistics(id_val)
        if not requests:
            return {}
        ood_val = self._collected("ood_val", "OOD validation", requests)
        results = {}
        for name, searched in searching.items():
            if isinstance(searched, StreamingDetector) and searched.settings.split == "val":
                searched.summary = None  # it may be of other images
            results[name] = searched.search_statistics(id_val, ood_val, sweep, self._progress).results
        return results

    def _fit_on_train(self, detectors: Iterable[AnyDetector]) -> None:
        """Fit all detectors that need the training images in one pass."""
        counters: list[tuple[StreamingDetector[Any, Any], Counter]] = []
        for detector in detectors:
            if not isinstance(detector, StreamingDetector) or detector.settings.split != "train":
                continue
            if not detector.has_summary:
                counters.append((detector, Counter()))
            elif detector.state is None and detector.summary is not None:
                detector.use_summary(detector.summary)  # it has new settings since
        if not counters:
            return
        requests = [detector.settings.request() for detector, _ in counters]
        for statistics, _ in self._pass(
            "train", self._benchmark.loader("train"), requests, "Training images"
        ):
            for detector, counter in counters:
                detector.add_to_summary(counter, statistics)
        for detector, counter in counters:
            detector.use_summary(counter.result())

    def _collected(self, name: str, title: str, requests: Sequence[FeatureRequest]) -> FeatureStatistics:
        batches = self._pass(name, self._benchmark.loader(name), requests, title)
        return FeatureStatistics.cat([statistics.cpu() for statistics, _ in batches])

    def test(self, full_spectrum: bool, counter: Accuracy) -> tuple[dict[str, Parts], int]:
        """Score the test images and count the right predictions; return the scores by detector, and C."""
        requests = [detector.settings.request() for detector in self._detectors.values()]
        for detector in self._detectors.values():
            detector.require_fitted()
        parts: dict[str, Parts] = {key: {} for key in self._detectors}
        classes = 0
        for name, loader in self._benchmark.test_loaders(full_spectrum):
            if name == "id":
                counter.begin(loader)
            batches: dict[str, list[dict[str, np.ndarray]]] = {key: [] for key in self._detectors}
            known: list[tuple[np.ndarray, np.ndarray]] = []
            for statistics, labels in self._pass(name, loader, requests, f"Score {name}"):
                for key, detector in self._detectors.items():
                    batches[key].append(_values(detector, statistics))
                predictions, classes = statistics.prediction.cpu().numpy(), statistics.logits.shape[1]
                given = counter.add(predictions, labels, classes) if name == "id" else plain_labels(labels)
                known.append((given, predictions))
            images = images_of(loader, *map(np.concatenate, zip(*known, strict=True)))
            for key, found in batches.items():
                values: dict[str, Any] = {
                    kind: np.concatenate([batch[kind] for batch in found]) for kind in found[0]
                }
                scores = values.pop("scores")
                parts[key].setdefault(name, []).append((scores, replace(images, **values)))
        return parts, classes

    def _pass(
        self, name: str, loader: Iterable[Any], requests: Sequence[FeatureRequest], description: str
    ) -> Iterator[LabelledStatistics]:
        request = FeatureRequest.union(requests)
        with naming(name):
            yield from iterate_statistics(
                self._extractor, loader, request, self._inference, self._progress, description
            )


def _search_request(detector: AnyDetector, sweep: Mapping[str, Sequence[Any]] | None) -> FeatureRequest:
    tried = detector.candidates(sweep)
    if sweep is not None:
        warn_if_doubtful(tried)
    return FeatureRequest.union(settings.request() for settings in tried)


def _values(detector: AnyDetector, statistics: FeatureStatistics) -> dict[str, np.ndarray]:
    """Return scores and, for methods that have them, percentiles and Q'."""
    found = {"scores": detector.score_statistics(statistics, detector.settings, detector.state)[1]}
    found |= adaptive_values(detector, statistics)
    return {name: values.cpu().numpy().astype(np.float64) for name, values in found.items()}


def adaptive_values(detector: AnyDetector, statistics: FeatureStatistics) -> dict[str, Tensor]:
    """Return the (N,) percentiles p and Q' of a method that has them (empty otherwise)."""
    if not isinstance(detector, Adaptive):
        return {}
    return {
        "percentiles": detector.percentiles_from(statistics),
        "oodness": detector.oodness_from(statistics),
    }

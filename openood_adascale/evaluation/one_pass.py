"""Detectors of one network over a benchmark's loaders, each of which is read once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pandas as pd
from torch import Tensor

from ..detectors.base import Detector, FittedDetector, StreamingDetector
from ..features.collect import LabelledStatistics, collect_statistics, iterate_statistics
from ..features.histogram import Counter
from ..features.loading import plain_labels
from ..features.statistics import FeatureRequest, FeatureStatistics
from .accuracy import Accuracy
from .benchmark import Benchmark, naming
from .per_image import PerImage, files_of, joined
from .result import TestValues

AnyDetector: TypeAlias = Detector[Any, Any]


@runtime_checkable
class Adaptive(Protocol):
    """A method with a percentile of its own for each image, as AdaSCALE has it."""

    def percentiles_from(self, statistics: FeatureStatistics) -> Tensor:
        """Return (N,) percentiles p in percent."""

    def oodness_from(self, statistics: FeatureStatistics) -> Tensor:
        """Return (N,) Q'."""


class ImageCollector:
    """Collector of labels, predictions and files of test images by set."""

    def __init__(self) -> None:
        self._parts: dict[str, list[PerImage]] = {}
        self._batches: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """Add (B,) labels and predicted classes of a batch."""
        self._batches.append((labels, predictions))

    def end(self, name: str, loader: Iterable[Any]) -> None:
        """Put the batches since the last call, which are a loader's, into the set ``name``."""
        labels, predictions = (
            np.concatenate([batch[column] for batch in self._batches]) for column in (0, 1)
        )
        self._batches = []
        paths, reason = files_of(loader)
        if paths and len(paths) != len(labels):
            reason = f"its loader yielded {len(labels)} images, and its dataset has {len(paths)} files"
            paths = ()
        self._parts.setdefault(name, []).append(PerImage(labels, predictions, paths, reason))

    def images(self) -> dict[str, PerImage]:
        """Return all images by set."""
        return {name: joined(parts) for name, parts in self._parts.items()}


class OnePass:
    """Detectors of one network with the same inference settings.

    Args:
        detectors: Detectors by name.
        benchmark: Loaders.
        progress: True or False shows or hides the progress bars (default: shown in a terminal).
    """

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
            self._extractor.volatile_buffers |= detector.extractor.volatile_buffers
            detector.extractor = self._extractor

    def prepare(
        self, search: bool | None, sweeps: Mapping[str, Mapping[str, Sequence[Any]]]
    ) -> dict[str, pd.DataFrame]:
        """Search or fit the detectors that need it, and return the search results by name."""
        searching = {
            name: sweeps.get(name)
            for name, detector in self._detectors.items()
            if (name in sweeps or detector.default_sweep)
            and (search if search is not None else name in sweeps or not detector.is_fitted)
        }
        requests = {}
        for name, sweep in searching.items():
            tried = self._detectors[name].candidates(sweep)
            any(settings.warn_if_doubtful() for settings in tried if sweep is not None)  # once
            requests[name] = FeatureRequest.union(settings.request() for settings in tried)
        fitting = {
            name: detector
            for name, detector in self._detectors.items()
            if name not in searching and isinstance(detector, FittedDetector) and detector.state is None
        }
        # Missing loaders must raise before the first pass.
        for name in ("val", "ood_val") if searching else ():
            self._benchmark.loader(name)
        self._fit_on_train([*searching, *fitting])
        on_val = [d for d in fitting.values() if d.settings.split == "val"]
        id_val = self._collected(
            "val", [*requests.values(), *(detector.settings.request() for detector in on_val)]
        )
        ood_val = self._collected("ood_val", list(requests.values()))
        for detector in on_val:
            if id_val is not None:
                detector.fit_statistics(id_val.statistics)
        results = {}
        for name, sweep in searching.items():
            if id_val is not None and ood_val is not None:
                searched = self._detectors[name]
                if isinstance(searched, StreamingDetector) and searched.settings.split == "val":
                    searched.summary = None  # it may be of other images
                found = searched.search_statistics(
                    id_val.statistics, ood_val.statistics, sweep, self._progress
                )
                results[name] = found.results
        return results

    def _fit_on_train(self, names: list[str]) -> None:
        """Fit all detectors that need the training images in one pass."""
        fitting: dict[str, StreamingDetector[Any, Any]] = {}
        for name in names:
            detector = self._detectors[name]
            if not isinstance(detector, StreamingDetector) or detector.settings.split != "train":
                continue
            if not detector.has_summary:
                fitting[name] = detector
            elif detector.state is None and detector.summary is not None:
                detector.use_summary(detector.summary)  # it has new settings since
        if not fitting:
            return
        counters = {name: Counter() for name in fitting}
        request = FeatureRequest.union(detector.settings.request() for detector in fitting.values())
        loader = self._benchmark.loader("train")
        for statistics, _ in self._pass("train", loader, request, "Training images"):
            for name, detector in fitting.items():
                detector.add_to_summary(counters[name], statistics)
        for name, detector in fitting.items():
            detector.use_summary(counters[name].result())

    def _collected(self, name: str, requests: list[FeatureRequest]) -> LabelledStatistics | None:
        if not requests:
            return None
        loader = self._benchmark.loader(name)
        title = {"val": "ID validation", "ood_val": "OOD validation"}[name]
        request = FeatureRequest.union(requests)
        with naming(name):
            return collect_statistics(
                self._extractor, loader, request, self._inference, self._progress, title
            )

    def test(
        self, full_spectrum: bool, want_accuracy: bool
    ) -> tuple[dict[str, TestValues], dict[str, PerImage], int, float | None]:
        """Run the test images.

        Returns:
            The values of the detectors by name, files, labels and predictions of the images by set, the number of classes,
            and the accuracy in percent (None if this pass is not in float32, or it is not wanted).
        """
        request = FeatureRequest.union(detector.settings.request() for detector in self._detectors.values())
        in_float32 = self._inference.precision == "float32"
        counter = Accuracy(self._benchmark.classes, want_accuracy)
        for detector in self._detectors.values():
            detector.require_fitted()
        collector, classes = ImageCollector(), 0
        parts: dict[str, dict[str, list[tuple[np.ndarray, ...]]]] = {name: {} for name in self._detectors}
        for name, loader in self._benchmark.test_loaders(full_spectrum):
            is_id = name == "id"
            if is_id:
                counter.begin(loader)
            for statistics, labels in self._pass(name, loader, request, f"Score {name}"):
                for key, detector in self._detectors.items():
                    parts[key].setdefault(name, []).append(_values(detector, statistics))
                predictions, classes = statistics.prediction.cpu().numpy(), statistics.logits.shape[1]
                labels = counter.add(predictions, labels, classes) if is_id else plain_labels(labels)
                collector.add(labels, predictions)
            collector.end(name, loader)
        percent = counter.percent() if want_accuracy and in_float32 else None
        return {key: _joined(sets) for key, sets in parts.items()}, collector.images(), classes, percent

    def _pass(
        self, name: str, loader: Iterable[Any], request: FeatureRequest, description: str
    ) -> Iterator[LabelledStatistics]:
        with naming(name):
            yield from iterate_statistics(
                self._extractor, loader, request, self._inference, self._progress, description
            )


def _values(detector: AnyDetector, statistics: FeatureStatistics) -> tuple[np.ndarray, ...]:
    """Return scores and, for methods that have them, percentiles and Q'."""
    scores = detector.score_statistics(statistics, detector.settings, detector.state)[1].cpu().numpy()
    if not isinstance(detector, Adaptive):
        return (scores,)
    percentiles, oodness = detector.percentiles_from(statistics), detector.oodness_from(statistics)
    return scores, percentiles.cpu().numpy(), oodness.cpu().numpy()


def _joined(sets: Mapping[str, list[tuple[np.ndarray, ...]]]) -> TestValues:
    columns = {
        name: [np.concatenate(column).astype(np.float64) for column in zip(*batches, strict=True)]
        for name, batches in sets.items()
    }
    return TestValues(
        *({name: found[place] for name, found in columns.items() if len(found) > place} for place in range(3))
    )

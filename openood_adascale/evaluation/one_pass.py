"""Several detectors of one network over a benchmark's loaders, each of which is run once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pandas as pd
from torch import Tensor

from ..detectors.base import Detector
from ..detectors.learning import LearningDetector, StreamingDetector, Summary
from ..evidence.collect import Collected, batches, collect
from ..evidence.evidence import Evidence
from ..evidence.plan import Plan
from .accuracy import Hits
from .benchmark import Benchmark
from .per_image import PerImage, joined
from .which_files import files_of

AnyDetector: TypeAlias = Detector[Any, Any]


@runtime_checkable
class Adaptive(Protocol):
    """A method with a percentile of its own for each image, as AdaSCALE has it."""

    def percentiles_of(self, evidence: Evidence) -> Tensor:
        """(N,) in percent."""


class Seen:
    """What a pass shows of test images, whatever the method."""

    def __init__(self) -> None:
        self.classes = 0
        """How many the network has; 0 where that is not seen."""
        self._parts: dict[str, list[PerImage]] = {}
        self._batches: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """(B,) labels and predicted classes of a batch."""
        self._batches.append((labels, predictions))

    def end(self, name: str, loader: Iterable[Any]) -> None:
        """All that was added since the last call were a loader's, of the set ``name``."""
        labels, predictions = (
            np.concatenate([batch[column] for batch in self._batches]) for column in (0, 1)
        )
        self._batches = []
        paths, unknown = files_of(loader)
        if paths and len(paths) != len(labels):
            paths, unknown = (
                (),
                f"its loader yielded {len(labels)} images, its data set tells {len(paths)} files",
            )
        self._parts.setdefault(name, []).append(PerImage(labels, predictions, paths, unknown))

    def images(self, percentiles: Mapping[str, np.ndarray]) -> dict[str, PerImage]:
        """By set.

        Args:
            percentiles: (N,) of a set's images, where there are any.
        """
        return {
            name: replace(joined(parts), percentiles=percentiles.get(name))
            for name, parts in self._parts.items()
        }


class TestScores:
    """The scores of one method on a benchmark's test images."""

    __test__ = False  # no test, whatever pytest thinks

    def __init__(self, benchmark: Benchmark, full_spectrum: bool) -> None:
        shifted = benchmark.covariate_shift if full_spectrum else {}
        self._known: dict[str, Iterable[Any]] = {
            "id": benchmark.test,
            **{f"id {n}": s for n, s in shifted.items()},
        }
        self._sets = {**benchmark.near, **benchmark.far}
        self._scores: dict[str, list[np.ndarray]] = {}
        self._percentiles: dict[str, list[np.ndarray]] = {}

    @property
    def known_loaders(self) -> list[Iterable[Any]]:
        """Those whose images count as in-distribution."""
        return list(self._known.values())

    def loaders(self) -> Iterator[tuple[str, Iterable[Any]]]:
        """What is to be scored: ``id`` for each of :attr:`known_loaders`, then the OOD sets by name."""
        for loader in self._known.values():
            yield "id", loader
        yield from self._sets.items()

    def add(self, name: str, scores: np.ndarray, percentiles: np.ndarray | None = None) -> None:
        """Take in some more scores, in the loaders' order; and the adaptive percentiles behind them, if there are any."""
        self._scores.setdefault(name, []).append(scores)
        if percentiles is not None:
            self._percentiles.setdefault(name, []).append(percentiles)

    def scores(self) -> dict[str, np.ndarray]:
        """All of them, by name."""
        return {name: np.concatenate(parts) for name, parts in self._scores.items()}

    def percentiles(self) -> dict[str, np.ndarray]:
        """Of a method that has them, by name."""
        return {name: np.concatenate(parts).astype(float) for name, parts in self._percentiles.items()}


class OnePass:
    """Detectors of one network that is run in one way.

    Args:
        detectors: by name; their networks and :class:`~openood_adascale.evidence.plan.Execution` are the same.
        benchmark: the loaders.
        progress: True or False shows or hides the bars; None shows them in a terminal.
    """

    def __init__(
        self, detectors: Mapping[str, AnyDetector], benchmark: Benchmark, progress: bool | None
    ) -> None:
        self._detectors = detectors
        self._benchmark = benchmark
        self._progress = progress
        first = next(iter(detectors.values()))
        self._execution = first.settings.execution
        self._reader = first.reader
        for detector in detectors.values():
            self._reader.volatile |= detector.reader.volatile
            detector.reader = self._reader

    def prepare(
        self, search: bool | None, sweeps: Mapping[str, Mapping[str, Sequence[Any]]]
    ) -> dict[str, pd.DataFrame]:
        """Search or fit those that are to be; the tables of the searches by name."""
        searching = {
            name: sweeps.get(name)
            for name, detector in self._detectors.items()
            if (name in sweeps or detector.default_sweep)
            and (search if search is not None else name in sweeps or not detector.settled)
        }
        plans = {
            name: Plan.union(settings.plan() for settings in self._detectors[name].tried(sweep))
            for name, sweep in searching.items()
        }
        fitting = {
            name: detector
            for name, detector in self._detectors.items()
            if name not in searching and isinstance(detector, LearningDetector) and detector.state is None
        }
        # Everything that is missing is to be known before the first pass.
        for name in ("val", "ood_val") if searching else ():
            self._benchmark.loader(name)
        self._learn_from_train([*searching, *fitting])
        from_val = {name: d for name, d in fitting.items() if d.settings.source == "val"}
        known = self._collected(
            "val", [*plans.values(), *(detector.settings.plan() for detector in from_val.values())]
        )
        unknown = self._collected("ood_val", list(plans.values()))
        for learning in from_val.values():
            if known is not None:
                learning.fit_evidence(known.evidence)
        tables = {}
        for name, sweep in searching.items():
            if known is not None and unknown is not None:
                detector = self._detectors[name]
                if isinstance(detector, StreamingDetector) and detector.settings.source == "val":
                    detector.summary = None  # of other images, perhaps
                found = detector.choose(known.evidence, unknown.evidence, sweep, self._progress)
                tables[name] = found.table
        return tables

    def _learn_from_train(self, names: list[str]) -> None:
        """One pass over the training images for all that learn from them and have not yet."""
        wanting: dict[str, StreamingDetector[Any, Any]] = {}
        for name in names:
            detector = self._detectors[name]
            if (
                isinstance(detector, StreamingDetector)
                and detector.settings.source == "train"
                and not detector.summary_holds
            ):
                wanting[name] = detector
        if not wanting:
            return
        loader = self._benchmark.loader("train")
        summaries: dict[str, Summary] = {name: detector.summary_class() for name, detector in wanting.items()}
        plan = Plan.union(detector.settings.plan() for detector in wanting.values())
        for evidence, _ in self._batches(loader, plan, "Training images"):
            for summary in summaries.values():
                summary.add(evidence)
        for name, detector in wanting.items():
            detector.fit_summary(summaries[name].result())

    def _collected(self, name: str, plans: list[Plan]) -> Collected | None:
        if not plans:
            return None
        loader = self._benchmark.loader(name)
        title = {"val": "ID validation", "ood_val": "OOD validation"}[name]
        plan = Plan.union(plans)
        return collect(self._reader, loader, plan, self._execution, self._progress, title)

    def test(
        self, full_spectrum: bool, want_accuracy: bool
    ) -> tuple[dict[str, TestScores], Seen, float | None]:
        """The scores on all test images by detector, what was seen of these, and the accuracy in percent if the pass
        gives it."""
        tested = {name: TestScores(self._benchmark, full_spectrum) for name in self._detectors}
        plan = Plan.union(detector.settings.plan() for detector in self._detectors.values())
        hits = Hits() if want_accuracy and self._execution.precision == "float32" else None
        seen = Seen()
        for detector in self._detectors.values():
            detector.require_fit(thorough=True)
        for name, loader in next(iter(tested.values())).loaders():
            for evidence, labels in self._batches(loader, plan, f"Score {name}"):
                for key, detector in self._detectors.items():
                    tested[key].add(name, *self._scores(detector, evidence))
                predictions = evidence.prediction.cpu().numpy()
                seen.add(labels, predictions)
                if hits is not None and name == "id":
                    hits.add(predictions, labels)
                seen.classes = evidence.logits.shape[1]
            seen.end(name, loader)
        return tested, seen, None if hits is None else hits.percent()

    @staticmethod
    def _scores(detector: AnyDetector, evidence: Evidence) -> tuple[np.ndarray, np.ndarray | None]:
        scores = detector.judge(evidence, detector.settings, detector.state)[1].cpu().numpy()
        return scores, detector.percentiles_of(evidence).cpu().numpy() if isinstance(
            detector, Adaptive
        ) else None

    def _batches(self, loader: Iterable[Any], plan: Plan, description: str) -> Iterator[Collected]:
        return batches(self._reader, loader, plan, self._execution, self._progress, description)

"""A network and OpenOOD's loaders, from ``setup`` on: one pass over each loader, whatever the candidates of a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from ..detectors.base import Detector
from ..detectors.learning import LearningDetector, StreamingDetector
from ..detectors.settings import Settings
from ..evidence.collect import Collected, collect
from ..evidence.histogram import Histogram
from ..evidence.plan import Plan
from ..metrics import auroc

Aurocs = dict[tuple[tuple[str, Any], ...], float]
"""AUROC in percent of each candidate, by its swept settings."""


class Loaders(NamedTuple):
    """OpenOOD's loaders that are looked at; by the objects themselves, since an id() can soon be another's."""

    learn: Any
    """Of the images to learn from."""
    known: Any
    """Of in-distribution validation images."""
    unknown: Any
    """Of OOD validation images; None where nothing is searched."""

    @classmethod
    def of(
        cls,
        method: type[Detector[Any, Any]],
        settings: Settings,
        search: bool,
        known: Mapping[str, Any],
        unknown: Mapping[str, Any],
    ) -> Loaders:
        """From OpenOOD's ``id_loader_dict`` and ``ood_loader_dict``.

        Raises:
            ValueError: the loader to learn from is missing.
        """
        source = settings.source
        if issubclass(method, LearningDetector) and known.get(source) is None:
            raise ValueError(
                f"id_loader_dict: it has no {source!r}, only {sorted(known)}; {method.__name__} learns "
                f"from these images{' (or from the validation images: learn_from: val)' if source == 'train' else ''}"
            )
        return cls(known.get(source), known.get("val"), unknown.get("val") if search else None)


class _Kept(NamedTuple):
    loader: Any
    collected: Collected


class SearchSession:
    """Learns, and judges the candidates of a search that OpenOOD drives; keeps the images' Evidence while it lasts.

    Args:
        network: the classifier.
        plan: what all candidates together ask of an image.
        loaders: those that OpenOOD gave.
        summary: of the images to learn from, where an earlier session had it.
    """

    def __init__(
        self, network: nn.Module, plan: Plan, loaders: Loaders, summary: Histogram | None = None
    ) -> None:
        self.network = network
        self.summary = summary
        """Of the images to learn from; outlives the search."""
        self._plan, self._loaders = plan, loaders
        self._lasts = False
        self._kept: list[_Kept] = []
        self._scores: dict[str, np.ndarray] = {}

    def begin_candidate(self) -> None:
        """A search is under way, and its next candidate is on."""
        self._lasts = True
        self._scores = {}

    def end(self) -> None:
        """Forget the images."""
        self._lasts = False
        self._kept = []

    def serves(self, network: nn.Module, loader: Any) -> bool:
        """Whether the images of this loader are to be judged from what is kept."""
        validation = (self._loaders.known, self._loaders.unknown)
        return self._lasts and network is self.network and any(loader is one for one in validation)

    def learn(self, detector: Detector[Any, Any], progress: bool | None = None) -> Any:
        """What ``detector``, of this network, learns with its present settings; None if it learns nothing."""
        if isinstance(detector, StreamingDetector):
            if self.summary is None:
                self.summary = self._summarised(detector, progress)
            return detector.learn_summary(self.summary, detector.settings)
        if isinstance(detector, LearningDetector):
            evidence = self._evidence(detector, self._loaders.learn, progress).evidence
            return detector.learn(evidence, detector.settings)
        return None

    def judge(
        self, detector: Detector[Any, Any], loader: Any, progress: bool | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) predicted classes, scores and labels of a loader that it :meth:`serves`."""
        evidence, labels = self._evidence(detector, loader, progress)
        pred, scores = (t.numpy() for t in detector.judge(evidence, detector.settings, detector.state))
        self._scores["known" if loader is self._loaders.known else "unknown"] = scores
        return pred.astype(int), scores, labels

    def auroc(self) -> float | None:
        """The present candidate's, in percent; None until both loaders are judged, or where a score is not finite."""
        if len(self._scores) < 2 or not all(np.isfinite(side).all() for side in self._scores.values()):
            return None
        return auroc(self._scores["known"], self._scores["unknown"])

    def _summarised(self, detector: StreamingDetector[Any, Any], progress: bool | None) -> Histogram:
        loader = self._loaders.learn
        if self.serves(self.network, loader):
            return detector.summarise([self._evidence(detector, loader, progress).evidence])
        return detector.summarise_loader(loader, progress, "Images to learn from")

    def _evidence(self, detector: Detector[Any, Any], loader: Any, progress: bool | None = None) -> Collected:
        plan, execution = detector.settings.plan(), detector.settings.execution
        for kept in self._kept:
            if kept.loader is loader and kept.collected.evidence.plan.covers(plan):
                return kept.collected
        union = Plan.union([self._plan, plan])
        collected = collect(detector.reader, loader, union, execution, progress, "Validation images")
        if self._lasts:
            self._kept = [kept for kept in self._kept if kept.loader is not loader]
            self._kept.append(_Kept(loader, collected))
        return collected


def candidate_key(swept: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A candidate as a key of :data:`Aurocs`; its pair of percentiles becomes ``p_min`` and ``p_max``."""
    row = dict(swept)
    if isinstance(pair := row.get("percentile"), list):
        del row["percentile"]
        row.update(p_min=pair[0], p_max=pair[1])
    return tuple(row.items())

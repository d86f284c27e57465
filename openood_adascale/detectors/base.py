"""Base classes of the detectors: ``fit``, ``score``, ``predict``, ``search``, ``threshold``, ``save``, ``load``."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from ..errors import DetectorFileError, NotFittedError, SettingError
from ..features.collect import collect_statistics, iterate_statistics
from ..features.extractor import FeatureExtractor
from ..features.fingerprint import first_difference, weights_fingerprint
from ..features.histogram import Counter, Histogram
from ..features.loading import plain_labels
from ..features.network import WeightsVersion, unwrap
from ..features.statistics import FeatureRequest, FeatureStatistics
from ..metrics import score_kept
from .search import SearchResult, candidates, search_aurocs
from .serialization import SavedDetector, damaged, read_detector, write_detector
from .settings import INFERENCE, Settings, number_within, warn_if_doubtful

if TYPE_CHECKING:
    from typing_extensions import Self

S = TypeVar("S", bound=Settings)
T = TypeVar("T")
"""Fitted state: a tensor, a dict of them, or None."""


class Detector(ABC, Generic[S, T]):
    """A post-hoc OOD detector on top of a trained classifier; this base class needs no fitting.

    A detector belongs to the network it was made with. ``fit`` and ``search`` set its state. Another network, or
    settings that fitting depends on, un-fit it; settings that only scoring reads take effect at once. After training the
    network further, call ``fit`` again.

    A subclass defines the feature request of its settings (``Settings.request``) and :meth:`score_statistics`. The network
    is left as it was found: mode, ``requires_grad``, ``.grad``, device and hooks. It is run in eval mode on its own
    device and in its own dtype.

    >>> class MaxLogit(Detector):
    ...     def score_statistics(self, statistics, settings, state):
    ...         return statistics.prediction, statistics.logits.amax(1)
    >>> MaxLogit(network).score(images).shape
    torch.Size([24])

    Args:
        network: Classifier that returns (B, C) logits and ends in a linear layer.
        settings: Values of :attr:`settings_class`.

    Raises:
        SettingError: A setting is out of range.
        TypeError: An unknown setting, or ``network`` is not a module.
    """

    settings_class: ClassVar[type[Settings]] = Settings
    default_sweep: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Default sweep of ``search``."""
    requires_fit: ClassVar[bool] = False
    """True if the method scores only after fitting."""

    def __init__(self, network: nn.Module, **settings: Any) -> None:
        self.extractor = FeatureExtractor(_module(network))
        """Feature extractor; detectors of one network may share it."""
        self._settings = cast(S, self.settings_class(**settings))
        warn_if_doubtful([self._settings])
        self.summary: Histogram | None = None
        """Histogram of the activations it was fitted on, if it is fitted on one."""
        self._weights: WeightsVersion | None = None  # of state, summary and validation scores
        self._unfit()

    def _unfit(self) -> None:
        self._state: T | None = None
        self._fitted = False
        self._validation_scores: np.ndarray | None = None

    @property
    def network(self) -> nn.Module:
        """The classifier; assigning another one un-fits the detector."""
        return self.extractor.network

    @network.setter
    def network(self, network: nn.Module) -> None:
        if network is not self.extractor.network:
            self.extractor = FeatureExtractor(_module(network))
            self.summary = None
            self._unfit()

    @property
    def settings(self) -> S:
        """The method's settings; assigning ones that fitting depends on un-fits the detector."""
        return self._settings

    @settings.setter
    def settings(self, settings: S) -> None:
        if type(settings) is not self.settings_class:
            raise TypeError(
                f"settings: {settings!r} is not allowed; {type(self).__name__} takes {self.settings_class.__name__}"
            )
        before, self._settings = self._settings, settings
        if settings != before:
            warn_if_doubtful([settings])
        if self.requires_fit and settings.fit_settings() != before.fit_settings():
            if (settings.split, settings.precision) != (before.split, before.precision):
                self.summary = None
            self._unfit()
        elif settings != before.replace(
            memory_format=settings.memory_format, forward_batch_size=settings.forward_batch_size
        ):
            self._validation_scores = None

    @property
    def state(self) -> T | None:
        """Fitted state (None before fitting, or if there is none)."""
        return self._state

    @property
    def is_fitted(self) -> bool:
        """True after :meth:`fit` or :meth:`search` with the present network and settings."""
        return self._fitted

    def __repr__(self) -> str:
        chosen = {f.name: getattr(self.settings, f.name) for f in dataclasses.fields(self.settings)}
        shown = [f"{name}={value!r}" for name, value in chosen.items() if name not in INFERENCE]
        text = ", ".join([type(self.network).__name__, *shown])
        return f"{type(self).__name__}({text})" + (", fitted" if self.is_fitted else "")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_weights": self._same_weights()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # A version of another module never holds: the weights had changed before the copy was made.
        self._weights = self.extractor.weights_version() if state["_weights"] else WeightsVersion(nn.Module())

    # Scores.

    @abstractmethod
    def score_statistics(self, statistics: FeatureStatistics, settings: S, state: T) -> tuple[Tensor, Tensor]:
        """Return (N,) predicted classes and (N,) scores; larger is more in-distribution.

        Args:
            statistics: Feature statistics of N images that cover ``settings.request()``.
            settings: Settings to score with.
            state: Fitted state for these settings.
        """

    def score(self, images: Tensor) -> Tensor:
        """Return the scores of a batch of images; larger is more in-distribution.

        Args:
            images: (B, ...) floating, normalised as the network expects.

        Returns:
            (B,) float64 (float32 on ``mps``) on the network's device.

        Raises:
            NotFittedError: The detector is not fitted, or the weights have changed since.
            ValueError: NaN or infinity in images or activations, or a head that is not linear.
            TypeError: Integer images.
        """
        return self.predict(images)[1]

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B,) predicted classes and (B,) scores of a batch of images; see :meth:`score`.

        Args:
            images: (B, ...) floating, normalised as the network expects.
        """
        self.require_fitted()
        settings = self.settings
        statistics = self.extractor.statistics(images, settings.request(), settings.inference)
        return self.score_statistics(statistics, settings, cast(T, self.state))

    def predict_loader(
        self, loader: Iterable[Any], progress: bool | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (N,) predicted classes, scores and labels (−1 for unlabelled) of a loader's images, in its order.

        Args:
            loader: Yields ``(images, labels)``, OpenOOD's dicts or images.
            progress: True or False shows or hides the progress bar (default: shown in a terminal).
        """
        columns = zip(*self.predict_batches(loader, progress), strict=True)
        predictions, scores, labels = map(np.concatenate, columns)
        return predictions, scores, labels

    def predict_batches(
        self, loader: Iterable[Any], progress: bool | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield :meth:`predict_loader` batch by batch, in memory that does not grow with the number of images.

        Args:
            loader: Yields ``(images, labels)``, OpenOOD's dicts or images.
            progress: True or False shows or hides the progress bar (default: shown in a terminal).
        """
        self.require_fitted()
        for statistics, labels in self._pass(loader, progress, "Score"):
            predictions, scores = self.score_statistics(statistics, self.settings, cast(T, self.state))
            yield predictions.cpu().numpy().astype(int), scores.cpu().numpy(), plain_labels(labels)

    def require_fitted(self) -> None:
        """Raise NotFittedError if the detector is not fitted, or the weights have changed since."""
        if not self.requires_fit:
            return
        if self._state is None:
            raise NotFittedError(f"{type(self).__name__} is not fitted: call fit(loader) or search(…) first")
        self._require_same_weights("fit(loader) or search(…)")

    def _same_weights(self) -> bool:
        return self._weights is None or self._weights.holds(unwrap(self.network))

    def _require_same_weights(self, call: str) -> None:
        if not self._same_weights():
            raise NotFittedError(
                f"network: weights of {type(self.network).__name__} have been written or replaced since "
                f"{type(self).__name__} was fitted; call {call} again"
            )

    # Fitting.

    def fit(self, loader: Iterable[Any], progress: bool | None = None) -> Self:
        """Mark the detector as fitted; no image is read, as there is nothing to fit."""
        self._fitted = True
        return self

    def fit_state(self, statistics: FeatureStatistics, settings: S) -> T:
        """Return the fitted state for ``settings`` from the feature statistics of ID images."""
        return cast(T, None)

    def set_state(self, state: T) -> Self:
        """Use a state that was fitted elsewhere, for the present network and settings."""
        self._state, self._fitted = state, True
        self._weights = self.extractor.weights_version()
        self._validation_scores = None
        return self

    def _pass(self, loader: Iterable[Any], progress: bool | None, description: str) -> Iterator[Any]:
        """Yield the feature statistics and labels of each batch, for the present settings."""
        request, inference = self.settings.request(), self.settings.inference
        return iterate_statistics(self.extractor, loader, request, inference, progress, description)

    def _collect(
        self, loader: Iterable[Any], request: FeatureRequest, progress: bool | None, description: str
    ) -> FeatureStatistics:
        inference = self.settings.inference
        return collect_statistics(
            self.extractor, loader, request, inference, progress, description
        ).statistics

    # Search.

    def search(
        self,
        id_loader: Iterable[Any],
        ood_loader: Iterable[Any],
        sweep: Mapping[str, Sequence[Any]] | None = None,
        progress: bool | None = None,
    ) -> SearchResult[S]:
        """Search the hyperparameters as OpenOOD does, in one pass over each loader, and fit with the best ones.

        Args:
            id_loader: ID validation images.
            ood_loader: OOD validation images.
            sweep: ``{"<setting>_list": [values]}``, for example ``{"percentile_list": [[60, 85], [80, 85]]}``; all
                combinations are tried (default: ``default_sweep``).
            progress: True or False shows or hides the progress bars (default: shown in a terminal).

        Raises:
            SettingError: The sweep is empty, or a setting in it is unknown or out of range.
            ValueError: As :meth:`score`, or a loader without images.
        """
        tried = self.candidates(sweep)
        if sweep is not None:
            warn_if_doubtful(tried)
        request = FeatureRequest.union(settings.request() for settings in tried)
        id_statistics = self._collect(id_loader, request, progress, "ID validation")
        ood_statistics = self._collect(ood_loader, request, progress, "OOD validation")
        return self.search_statistics(id_statistics, ood_statistics, sweep, progress)

    def candidates(self, sweep: Mapping[str, Sequence[Any]] | None = None) -> list[S]:
        """Return the candidates of :meth:`search` with this sweep."""
        return candidates(self.settings, self.default_sweep if sweep is None else sweep)

    def search_statistics(
        self,
        id_statistics: FeatureStatistics,
        ood_statistics: FeatureStatistics,
        sweep: Mapping[str, Sequence[Any]] | None = None,
        progress: bool | None = None,
    ) -> SearchResult[S]:
        """Search on feature statistics of validation images that cover all candidates; see :meth:`search`."""
        import pandas as pd  # slow to import, and scoring does not need it

        tried = self.candidates(sweep)

        def scores(settings: S) -> tuple[np.ndarray, np.ndarray]:
            state = self.fit_state(id_statistics, settings)
            id_scores = self.score_statistics(id_statistics, settings, state)[1]
            return id_scores.numpy(), self.score_statistics(ood_statistics, settings, state)[1].numpy()

        aurocs = search_aurocs(tried, scores, progress)
        best = int(np.argmax(aurocs))
        self._settings = tried[best]
        self.set_state(self.fit_state(id_statistics, self._settings))
        self._keep_validation_scores(id_statistics)
        results = pd.DataFrame([settings.as_dict() for settings in tried]).assign(auroc=aurocs)
        return SearchResult(self._settings, aurocs[best], results)

    # Thresholds.

    def fit_threshold(self, loader: Iterable[Any], progress: bool | None = None) -> Self:
        """Keep the scores of ID validation images for :meth:`threshold`, in one pass.

        Args:
            loader: Yields ``(images, labels)``, OpenOOD's dicts or images.
            progress: True or False shows or hides the progress bar (default: shown in a terminal).

        Raises:
            NotFittedError, ValueError, TypeError: As :meth:`score`, or NaN or infinite scores.
        """
        scores = self.predict_loader(loader, progress)[1]
        if bad := int(np.count_nonzero(~np.isfinite(scores))):
            raise ValueError(f"scores: {bad} of {len(scores)} are NaN or infinite; expected finite numbers")
        self._set_validation_scores(scores)
        return self

    @property
    def validation_scores(self) -> np.ndarray | None:
        """(n_val,) float64 scores of ID validation images, ascending (None if there are none for the present settings)."""
        return self._validation_scores

    def threshold(self, tpr: float = 0.95) -> float:
        """Return the largest validation score that at least the share ``tpr`` of the ID validation images reaches.

        The images are those of :meth:`search`, :meth:`fit_threshold`, or, for AdaSCALE, :meth:`fit`.

        Args:
            tpr: True positive rate of ID images, in (0, 1].

        Raises:
            SettingError: ``tpr`` is not in (0, 1].
            NotFittedError: There are no validation scores for the present network and settings.
        """
        self.require_fitted()
        if self._validation_scores is None:
            raise NotFittedError(
                f"{type(self).__name__} has no scores of ID validation images for its present settings: call "
                "fit_threshold(loader) first"
            )
        self._require_same_weights("fit_threshold(loader)")
        return score_kept(self._validation_scores, number_within("tpr", tpr, "(0, 1]"))

    def is_ood(self, images: Tensor, tpr: float = 0.95) -> Tensor:
        """Return (B,) bool, True for images that score below :meth:`threshold`; raises as that and :meth:`score`.

        Args:
            images: (B, ...) floating, normalised as the network expects.
            tpr: True positive rate of ID images, in (0, 1].
        """
        least = self.threshold(tpr)
        return self.score(images) < least

    def _keep_validation_scores(self, statistics: FeatureStatistics) -> None:
        """Keep the scores of ID images from their statistics, unless some are NaN or infinite."""
        state = cast(T, self.state)
        blocks = [self.score_statistics(block, self.settings, state)[1] for block in statistics.blocks()]
        scores = torch.cat(blocks).cpu().numpy()
        if np.isfinite(scores).all():
            self._set_validation_scores(scores)

    def _set_validation_scores(self, scores: np.ndarray) -> None:
        ordered = np.sort(scores.astype(np.float64))
        ordered.setflags(write=False)
        self._validation_scores = ordered
        self._weights = self.extractor.weights_version()

    # Files.

    def save(self, path: str | os.PathLike[str], notes: Mapping[str, Any] | None = None) -> None:
        """Write settings, fitted state, validation scores and the weights' fingerprint to a safetensors file.

        Args:
            path: The file.
            notes: Anything else to keep in the file that JSON can hold, for example class names.

        Raises:
            NotFittedError: The detector is not fitted, or the weights have changed since.
            DetectorFileError: The file cannot be written.
        """
        self.require_fitted()
        if self._validation_scores is not None:
            self._require_same_weights("fit_threshold(loader)")
        saved = SavedDetector(
            method=qualified(type(self)),
            settings=self.settings.as_dict(),
            weights=weights_fingerprint(self.network),
            state=self.state,
            validation_scores=self._validation_scores,
            notes=dict(notes or {}),
        )
        write_detector(path, saved)

    @classmethod
    def load(cls, path: str | os.PathLike[str], network: nn.Module) -> Self:
        """Return the detector that :meth:`save` wrote, for a network with the same weights.

        Nothing in the file is executed.

        Args:
            path: The file.
            network: Network with the weights that the detector was saved for.

        Raises:
            DetectorFileError: No file, damaged, another version's or method's, or other weights; names the first tensor
                that differs.
            TypeError: ``network`` is not a module.
        """
        saved = read_detector(path)
        if saved.method != qualified(cls):
            raise DetectorFileError(
                f"{os.fspath(path)}: it holds a detector of {saved.method!r}; expected {qualified(cls)!r}. "
                "openood_adascale.load_detector(path, network) loads any method of this package"
            )
        try:
            detector = cls(network, **saved.settings)
        except SettingError as error:
            raise damaged(path, error) from error
        if difference := first_difference(saved.weights, weights_fingerprint(network)):
            raise DetectorFileError(
                f"{os.fspath(path)}: it was saved for other weights than those of this {type(network).__name__}: "
                f"{difference}; expected that network, or a detector that is fitted again"
            )
        detector.set_state(saved.state)
        if saved.validation_scores is not None:
            detector._set_validation_scores(saved.validation_scores)
        return detector


class FittedDetector(Detector[S, T]):
    """A detector that is fitted on the feature statistics of ID validation images.

    >>> class Centred(FittedDetector):
    ...     def fit_state(self, statistics, settings):
    ...         return statistics.logits.mean(0)
    ...     def score_statistics(self, statistics, settings, state):
    ...         return statistics.prediction, -(statistics.logits - state).norm(dim=1)
    >>> Centred(network).fit(val_loader).is_ood(images).shape
    torch.Size([24])
    """

    requires_fit: ClassVar[bool] = True

    @abstractmethod
    def fit_state(self, statistics: FeatureStatistics, settings: S) -> T:
        """Return the fitted state from the feature statistics of ID images.

        Args:
            statistics: Feature statistics that cover ``settings.request()``.
            settings: Settings to fit for.
        """

    def fit(self, loader: Iterable[Any], progress: bool | None = None) -> Self:
        """Fit on ID validation images in one pass, and keep their scores for :meth:`threshold`.

        Args:
            loader: Yields ``(images, labels)``, OpenOOD's dicts or images; labels are ignored.
            progress: True or False shows or hides the progress bar (default: shown in a terminal).

        Raises:
            ValueError: A loader without images, a network without a linear head, or NaN or infinity (names the images).
            TypeError: Integer images.
        """
        return self.fit_statistics(self._collect(loader, self.settings.request(), progress, "Fit"))

    def fit_statistics(self, statistics: FeatureStatistics) -> Self:
        """Fit on feature statistics of the detector's own network; see :meth:`fit`."""
        self.set_state(self.fit_state(statistics, self.settings))
        self._keep_validation_scores(statistics)
        return self


class StreamingDetector(FittedDetector[S, T]):
    """A detector that is fitted on the histogram of all activations of many (training) images, in constant memory.

    The histogram does not depend on the settings, so a search needs a single pass over the training images.
    """

    @abstractmethod
    def fit_summary(self, summary: Histogram, settings: S) -> T:
        """Return the fitted state from the histogram of the ID activations.

        Args:
            summary: Histogram of all activations of the ID images.
            settings: Settings to fit for.
        """

    def add_to_summary(self, counter: Counter, statistics: FeatureStatistics) -> None:
        """Count the activations of a batch.

        Args:
            counter: Counter of all batches.
            statistics: Feature statistics of the batch.
        """
        counter.add(statistics.activation)

    def summarise(self, batches: Iterable[FeatureStatistics]) -> Histogram:
        """Return the histogram of all activations of ``batches``."""
        counter = Counter()
        for statistics in batches:
            self.add_to_summary(counter, statistics)
        return counter.result()

    def _summarise_loader(self, loader: Iterable[Any], progress: bool | None) -> Histogram:
        return self.summarise(statistics for statistics, _ in self._pass(loader, progress, "Fit"))

    def fit(self, loader: Iterable[Any], progress: bool | None = None) -> Self:
        """Fit on ID (training) images in one pass; see :meth:`FittedDetector.fit`.

        No validation scores are kept: call :meth:`fit_threshold` for a threshold.
        """
        return self.use_summary(self._summarise_loader(loader, progress))

    @override
    def fit_statistics(self, statistics: FeatureStatistics) -> Self:
        self.use_summary(self.summarise([statistics]))
        if self.settings.split == "val":
            self._keep_validation_scores(statistics)
        return self

    @property
    def has_summary(self) -> bool:
        """True if :attr:`summary` is of the present weights and split."""
        return self.summary is not None and self._same_weights()

    def use_summary(self, summary: Histogram) -> Self:
        """Fit on a histogram that is there already."""
        self.summary = summary
        return self.set_state(self.fit_summary(summary, self.settings))

    @override
    def fit_state(self, statistics: FeatureStatistics, settings: S) -> T:
        if self.summary is None:
            self.summary = self.summarise([statistics])
        return self.fit_summary(self.summary, settings)

    def search(
        self,
        id_loader: Iterable[Any],
        ood_loader: Iterable[Any],
        sweep: Mapping[str, Sequence[Any]] | None = None,
        progress: bool | None = None,
        fit_loader: Iterable[Any] | None = None,
    ) -> SearchResult[S]:
        """Search the hyperparameters; see :meth:`Detector.search` for the other arguments and errors.

        Args:
            id_loader: ID validation images.
            ood_loader: OOD validation images.
            sweep: Sweep.
            progress: Progress bars.
            fit_loader: Images to fit all candidates on, in one pass (default: those of :meth:`fit`, or ``id_loader`` if
                ``fit_split`` is ``val``).
        """
        self.candidates(sweep)  # a bad sweep must raise before the pass
        summary = kept = self.summary
        if fit_loader is not None:
            summary = self._summarise_loader(fit_loader, progress)
        elif self.settings.split == "val":
            summary = None  # on id_loader
        elif summary is None:
            raise ValueError(
                f"fit_loader: None is not allowed; {type(self).__name__} is fitted on training images, or on the "
                "validation images with fit_split='val'"
            )
        else:
            self._require_same_weights("fit(loader)")
        self.summary = summary
        try:
            return super().search(id_loader, ood_loader, sweep, progress)
        except BaseException:
            self.summary = kept
            raise


def qualified(kind: type) -> str:
    """Return ``module:class``."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _module(network: Any) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: {type(network).__name__} is not a torch.nn.Module")
    return network

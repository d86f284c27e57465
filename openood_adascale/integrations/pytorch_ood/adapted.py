"""A detector of pytorch-ood as a method of ``evaluate``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_ood.api import Detector, FeatureMapsDetector, FeaturesDetector, GradientDetector, LogitsDetector
from torch import Tensor, nn

from ...detectors.settings import SPLITS, one_of
from ...evaluation.benchmark import Benchmark
from ...features.collect import NO_IMAGES, iterate_statistics
from ...features.extractor import FLOAT32
from ...features.loading import progress_over, unpack
from ...features.network import device_of, original, unwrap
from ...features.statistics import FeatureRequest
from .detector import NO_ID
from .features import Encoder, extractor_of

_Batch = tuple[Tensor, np.ndarray, np.ndarray]
"""Input of the detector, predicted classes and labels."""
_CALLS = {
    "images": ("fit", "predict"),
    "logits": ("fit_logits", "predict_logits"),
    "activation": ("fit_features", "predict_features"),
}


def adapt(
    detector: Detector,
    network: nn.Module,
    *,
    fit_split: str | None = "train",
    search: bool = False,
    on_images: bool = False,
) -> Adapted:
    """Return a detector of pytorch-ood as a method of :func:`~openood_adascale.evaluate`.

    Its scores are the negatives of the detector's: larger is more in-distribution. A ``LogitsDetector`` of pytorch-ood gets
    logits if its ``model`` is ``network`` or None. A ``FeaturesDetector`` gets penultimate activations if its ``encoder`` is
    None or ``penultimate_encoder(network)``. Both come from the feature cache in use, if there is one. All other detectors,
    subclasses defined elsewhere included, are fitted and run on the images.

    >>> from openood_adascale.integrations.pytorch_ood import penultimate_encoder
    >>> from pytorch_ood.detector import Entropy, ViM
    >>> vim = ViM(penultimate_encoder(network), 16, network.fc.weight, network.fc.bias)
    >>> methods = {"Entropy": adapt(Entropy(network), network), "ViM": adapt(vim, network)}
    >>> results = evaluate(methods, benchmark, cache_dir="features")      # one pass over each loader

    Args:
        detector: A detector with pytorch-ood's interface.
        network: Its classifier, for accuracy and features.
        fit_split: Split of the benchmark that a detector is fitted on if it requires fitting, ``train`` or ``val``; None for
            a detector that is fitted already.
        search: Let ``evaluate`` search the detector's ``hyperparameter_space``.
        on_images: Run the detector on the images in any case, for example if ``network`` has no linear head.

    Raises:
        TypeError: Not a detector of pytorch-ood, or not a network.
        SettingError: Another ``fit_split``.
    """
    if not isinstance(detector, Detector):
        raise TypeError(f"detector: {type(detector).__name__} is not a detector of pytorch-ood")
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: {type(network).__name__} is not a torch.nn.Module")
    split = None if fit_split is None else one_of("fit_split", fit_split, SPLITS)
    return Adapted(detector, network, split, search, "images" if on_images else _source(detector, network))


class Adapted:
    """A detector of pytorch-ood with the methods of OpenOOD's postprocessors; made by :func:`adapt`."""

    def __init__(
        self, detector: Detector, network: nn.Module, fit_split: str | None, search: bool, source: str
    ) -> None:
        self.detector, self.network, self.fit_split = detector, network, fit_split
        self.source = source
        """Input of the detector, ``images``, ``logits`` or ``activation``."""
        self.APS_mode = search
        self.args_dict = dict(detector.hyperparameter_space)
        """Values to search by hyperparameter."""
        self.hyperparam_search_done = False
        self._extractor = extractor_of(network)
        self._fit_loader: Iterable[Any] | None = None  # None if it is not to be fitted
        self._stale = False

    @property
    def from_features(self) -> bool:
        """True if the detector takes features, False if it runs on the images."""
        return self.source != "images"

    def check(self, benchmark: Benchmark) -> None:
        """Raise a ValueError if the images to fit on are missing."""
        if self.detector.requires_fit and self.fit_split is not None:
            benchmark.loader(self.fit_split)

    def setup(self, net: Any, id_loader_dict: Mapping[str, Any], ood_loader_dict: Mapping[str, Any]) -> None:
        """Fit the detector if necessary; if it is searched, its candidates are fitted instead."""
        if self.detector.requires_fit and self.fit_split is not None:
            self._fit_loader, self._stale = id_loader_dict[self.fit_split], True
        if not self.APS_mode:
            self._fit()

    def inference(
        self, net: Any, data_loader: Iterable[Any], progress: bool | None = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (N,) predicted classes (−1 for a detector on images), scores and labels of a loader's images."""
        self._fit()
        batches = self._batches(data_loader, progress, "Score")
        parts = [(predictions, self._scores(values), labels) for values, predictions, labels in batches]
        if not parts:
            raise ValueError(NO_IMAGES)
        predictions, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        return predictions, scores, labels

    def set_hyperparam(self, hyperparam: Sequence[Any]) -> None:
        """Set the hyperparameters in the order of :attr:`args_dict`; the detector is fitted before it scores again."""
        self.detector.set_hyperparameters(**dict(zip(self.args_dict, hyperparam, strict=True)))
        self._stale = self._fit_loader is not None

    def get_hyperparam(self) -> list[Any]:
        """Return the hyperparameters in the order of :attr:`args_dict`."""
        found = self.detector.get_hyperparameters()
        return [found[name] for name in self.args_dict]

    def _fit(self) -> None:
        if not self._stale or self._fit_loader is None:
            return
        fit = getattr(self.detector, _CALLS[self.source][0])
        if self.source == "images":
            fit(_Pairs(self._fit_loader))
        else:
            values, labels = [], []
            for value, _, label in self._batches(self._fit_loader, False, "Fit"):
                rows = torch.from_numpy(label >= 0)
                values.append(value.cpu()[rows])
                labels.append(torch.from_numpy(label)[rows])
            if not sum(map(len, labels)):
                raise ValueError(NO_ID)
            fit(torch.cat(values), torch.cat(labels))
        self._stale = False

    def _batches(self, loader: Iterable[Any], progress: bool | None, text: str) -> Iterator[_Batch]:
        if self.source == "images":
            for images, labels in map(unpack, progress_over(loader, progress, text)):
                if len(images):
                    yield images, np.full(len(labels), -1), labels
            return
        request = FeatureRequest(activations=self.source == "activation")
        batches = iterate_statistics(self._extractor, loader, request, FLOAT32, progress, text)
        for statistics, labels in batches:
            yield getattr(statistics, self.source), statistics.prediction.cpu().numpy(), labels

    def _scores(self, values: Tensor) -> np.ndarray:
        detector = self.detector
        # On features, a detector without a device is fitted and scores in main memory.
        default = device_of(unwrap(self.network)) if self.source == "images" else "cpu"
        kinds = (LogitsDetector, FeaturesDetector, FeatureMapsDetector)
        gradient = isinstance(detector, GradientDetector) or not isinstance(detector, kinds)
        with torch.set_grad_enabled(gradient):
            found = getattr(detector, _CALLS[self.source][1])(values.to(detector.device or default))
        if not isinstance(found, Tensor) or found.shape != (len(values),):
            given = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            name = type(detector).__name__
            raise ValueError(
                f"{name}: it returns {given} for {len(values)} images; expected ({len(values)},)"
            )
        scores: np.ndarray = -found.detach().double().cpu().numpy()
        return scores


def _source(detector: Any, network: nn.Module) -> str:
    """Return the input that gives the detector's scores; see :func:`adapt`."""
    if type(detector).__module__.partition(".")[0] != "pytorch_ood" or isinstance(detector, GradientDetector):
        return "images"
    if isinstance(detector, LogitsDetector):
        model = detector.model
        return "logits" if model is None or original(model) is original(network) else "images"
    if isinstance(detector, FeaturesDetector):
        encoder = detector.encoder
        plain = isinstance(encoder, Encoder) and not encoder.perturbations and encoder.inference == FLOAT32
        if encoder is None or (plain and original(encoder.extractor.network) is original(network)):
            return "activation"
    return "images"


class _Pairs:
    """A loader whose batches are (images, labels) tensors, as pytorch-ood's detectors expect them."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in map(unpack, self._loader):
            if len(images):
                yield images, torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self._loader)

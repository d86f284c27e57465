"""A method of this package as a detector of pytorch-ood."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pytorch_ood.api import FeaturesDetector, ModelNotSetException, RequiresFittingException
from torch import Tensor, nn

from ...detectors.base import Detector, FittedDetector, StreamingDetector
from ...detectors.registry import METHODS, Method
from ...errors import NotFittedError
from ...features.collect import iterate_statistics
from ...features.statistics import FeatureRequest, FeatureStatistics
from .features import ROWS, Encoder, encoder_of, extractor_of, statistics_of

if TYPE_CHECKING:
    from typing_extensions import Self

NO_ID = "loader: none of its images is ID; expected batches (images, labels) with integer labels >= 0 for ID images"


class MethodDetector(FeaturesDetector):
    """Base of the detectors: a method of this package with pytorch-ood's interface, sign and labels.

    Scores are the negatives of this package's: larger is more OOD. Images with labels below 0 are left out of ``fit``.
    Settings are attributes, too, in this package's units (percentiles in percent). The network is run in eval mode on its
    own device, which ``to`` changes, and left as it was found. Errors are those of the method, and pytorch-ood's
    ``ModelNotSetException`` and ``RequiresFittingException``.

    >>> from openood_adascale.integrations.pytorch_ood import AdaSCALE
    >>> detector = AdaSCALE(network, percentile=(60, 85)).fit(val_loader)
    >>> detector.percentile, detector.predict(images).shape
    ((60.0, 85.0), torch.Size([24]))

    Args:
        model: Classifier that returns (B, C) logits and ends in a linear layer; None to set it later.
        settings: Settings of the method.
    """

    method: ClassVar[Method]
    """Line of the registry."""

    def __init__(self, model: nn.Module | None, **settings: Any) -> None:
        super().__init__()
        self._core: Detector[Any, Any] = self.method.detector(
            nn.Identity(), **{**self.method.defaults, **settings}
        )
        self._encoder: Encoder | None = None
        self.model = model

    @property
    def model(self) -> nn.Module | None:
        """The classifier; assigning another one un-fits the detector."""
        return self._model

    @model.setter
    def model(self, model: nn.Module | None) -> None:
        if model is not self._core.network:
            self._core.network = nn.Identity() if model is None else model
            self._core.extractor = extractor_of(self._core.network)
        self._model = model

    @property
    def core(self) -> Detector[Any, Any]:
        """The detector of this package, with ``threshold``, ``search`` and ``save``."""
        if self._model is None:
            raise ModelNotSetException(f"{type(self).__name__}: model must not be None")
        return self._core

    @property
    def settings(self) -> Any:
        """The method's settings."""
        return self._core.settings

    @property
    def encoder(self) -> Encoder | None:
        """Encoder of images to features that serve all of ``hyperparameter_space`` (None without a model)."""
        if self._model is None:
            return None
        space = self.hyperparameter_space
        tried = [self.settings, *(self._core.candidates(space) if space else [])]
        request = FeatureRequest.union(settings.request() for settings in tried)
        self._encoder = encoder_of(self._core.extractor, request.perturbations, self.settings.inference)
        return self._encoder

    def set_hyperparameters(self, **kwargs: Any) -> Self:
        """Set any of the method's settings by name; those that fitting depends on un-fit the detector."""
        present = self.settings
        self._core.settings = present.from_mapping(kwargs, type(self).__name__, **present.as_dict())
        return self

    def fit(self, data_loader: Iterable[Any]) -> Self:
        """Fit on the ID images of a loader in one pass; methods without fitting do not read it."""
        core, settings = self.core, self.settings
        if isinstance(core, FittedDetector):
            self._fit(
                iterate_statistics(
                    core.extractor, data_loader, settings.request(), settings.inference, progress=False
                )
            )
        return self

    def fit_features(self, x: Tensor, y: Tensor) -> Self:
        """Fit on features of images.

        Args:
            x: (N, D') output of :attr:`encoder`; without perturbed inputs (N, D) penultimate activations.
            y: (N,) labels; rows with labels below 0 are left out.
        """
        core = self.core
        if isinstance(core, FittedDetector):
            if len(y) != len(x):
                raise ValueError(f"y: {len(y)} labels for {len(x)} rows of features")
            blocks = statistics_of(x, core.extractor, self.settings.request())
            self._fit(zip(blocks, y.split(ROWS), strict=True))
        return self

    def _fit(self, batches: Iterable[tuple[FeatureStatistics, Any]]) -> None:
        core: Any = self._core
        id_only = _id_only(batches)
        if isinstance(core, StreamingDetector):
            core.use_summary(core.summarise(id_only))
        else:
            core.fit_statistics(FeatureStatistics.cat([statistics.cpu() for statistics in id_only]))

    def predict(self, x: Tensor) -> Tensor:
        """Return the scores of a batch of images; larger is more OOD.

        Args:
            x: (B, ...) floating images, normalised as the network expects.

        Returns:
            (B,) on the network's device, float64 for all methods but MSP, as a score can be too large for float32.
        """
        return -self._fitted().score(x)

    def predict_features(self, x: Tensor) -> Tensor:
        """Return the scores of (N, D') features; see :meth:`fit_features`."""
        core, settings = self._fitted(), self.settings
        if len(x) == 0:
            return x.new_empty(0)
        blocks = statistics_of(x, core.extractor, settings.request())
        return torch.cat([-core.score_statistics(block, settings, core.state)[1] for block in blocks])

    def _fitted(self) -> Detector[Any, Any]:
        core = self.core
        try:
            core.require_fitted()
        except NotFittedError as error:
            raise RequiresFittingException(str(error)) from error
        return core

    def __repr__(self) -> str:
        return repr(self._core).replace(type(self._core).__name__, type(self).__name__, 1)


def _id_only(batches: Iterable[tuple[FeatureStatistics, Any]]) -> Iterator[FeatureStatistics]:
    """Yield the statistics of ID images, those with labels from 0 on; without any, raise a ValueError."""
    found = False
    for statistics, labels in batches:
        rows = torch.as_tensor(labels, device=statistics.logits.device) >= 0
        if bool(rows.any()):
            found = True
            yield statistics[rows]
    if not found:
        raise ValueError(NO_ID)


def class_names() -> dict[str, Method]:
    """Return the registry's methods by the names of their classes here."""
    found: dict[str, Method] = {}
    for method in METHODS.values():
        name = method.detector.__name__
        found[re.sub(r"\W+", "_", method.label) if name in found else name] = method
    return found


def make_class(name: str, method: Method, module: str) -> type[MethodDetector]:
    """Return the class of a method, with its settings in the signature and as attributes."""
    kind = method.detector
    defaults = kind.settings_class(**method.defaults)
    parameters = [inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    parameters += [
        inspect.Parameter(setting, inspect.Parameter.KEYWORD_ONLY, default=getattr(defaults, setting))
        for setting in defaults.names()
    ]
    content: dict[str, Any] = {
        "__module__": module,
        "__doc__": f"""{method.label} as a detector of pytorch-ood; see :class:`MethodDetector`.

    Its settings are those of :class:`~{kind.__module__}.{kind.__qualname__}`.

    >>> scores = {name}(model).fit(loader).predict(images)      # larger is more OOD
    """,
        "__signature__": inspect.Signature(parameters),
        "method": method,
        "requires_fit": kind.requires_fit,
        "hyperparameter_space": {
            setting.removesuffix("_list"): list(values) for setting, values in kind.default_sweep.items()
        },
        **{setting: _setting(setting) for setting in defaults.names()},
    }
    return type(name, (MethodDetector,), content)


def _setting(name: str) -> property:
    def read(self: MethodDetector) -> Any:
        return getattr(self.settings, name)

    def write(self: MethodDetector, value: Any) -> None:
        self.set_hyperparameters(**{name: value})

    return property(read, write, doc=f"The setting ``{name}``.")

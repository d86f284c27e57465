"""A method of this package as a detector of pytorch-ood's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pytorch_ood.api import FeaturesDetector, ModelNotSetException, RequiresFittingException
from torch import Tensor, nn

from ...detectors.base import Detector
from ...detectors.learning import LearningDetector, StreamingDetector
from ...detectors.registry import Method
from ...detectors.search import candidates
from ...detectors.settings import EXECUTION, Settings
from ...errors import SettingError
from ...evidence.evidence import Evidence
from ...evidence.modes import unwrap
from ...evidence.plan import Plan
from .features import Encoder, encoder_of, evidence_of, reader_of
from .kept import Kept
from .known import NONE, known_evidence

if TYPE_CHECKING:
    from typing_extensions import Self


class MethodDetector(FeaturesDetector):
    """A method of this package as a detector of pytorch-ood's: larger scores are more out-of-distribution, the negatives of
    this package's, and images with labels below 0 are left out of :meth:`fit`.

    Its settings are attributes, too, in this package's units (percentiles in percent). The network is left as it was
    found, and run in eval mode, on its own device, which :meth:`to` changes.

    Args:
        model: returns (B, C) logits and ends in a linear layer; None can be set later.
        settings: the method's settings; or give them as keyword arguments.

    Raises:
        SettingError: a setting unknown or out of range.
        TypeError: no network.
    """

    method: ClassVar[Method]
    """Its line of the registry."""

    def __init__(self, model: nn.Module | None, settings: Settings | None = None, **keywords: Any) -> None:
        super().__init__()
        if settings is not None and keywords:
            raise TypeError("give either settings or keyword arguments, not both")
        kind = self.method.detector.settings_class
        if settings is None:
            settings = kind.from_mapping({**self.method.defaults, **keywords}, type(self).__name__)
        if type(settings) is not kind:
            raise TypeError(
                f"settings: {settings!r} is not allowed; {type(self).__name__} takes {kind.__name__}"
            )
        self._settings = settings
        self._core: Detector[Any, Any] | None = None
        self._encoder: Encoder | None = None
        self._kept = Kept()
        self.model = model
        self._warn_of_fractions()

    @property
    def model(self) -> nn.Module | None:
        """The classifier. With another one, what was learnt is not used: fitting is asked for."""
        return self._model

    @model.setter
    def model(self, model: nn.Module | None) -> None:
        self._settings = self.settings
        if model is None:
            self._core = None
        elif self._core is None or model is not self._core.network:
            core = self.method.detector(model, self._settings)
            core.reader = reader_of(model)
            self._core = core
        self._model = model

    @property
    def core(self) -> Detector[Any, Any]:
        """The detector of this package that it is made of.

        Raises:
            ModelNotSetException: there is no network.
        """
        if self._core is None:
            raise ModelNotSetException(f"{type(self).__name__}: model must not be None")
        return self._core

    @property
    def settings(self) -> Any:
        """The method's settings. What was learnt with others is learnt anew if it can be; else fitting is asked for."""
        return self._settings if self._core is None else self._core.settings

    @settings.setter
    def settings(self, settings: Any) -> None:
        if self._core is not None:
            self._core.settings = settings
        self._settings = settings
        self._warn_of_fractions()

    @property
    def encoder(self) -> Encoder | None:
        """What gives images' features for :meth:`predict_features` and :meth:`fit_features`; None without a network. One
        pass serves every candidate of :attr:`hyperparameter_space`.

        Raises:
            SettingError: a candidate that cannot be.
        """
        if self._core is None:
            return None
        asked = Plan.union(settings.plan() for settings in self._tried())
        self._encoder = encoder_of(self._core.reader, asked.perturbations, self.settings.execution)
        return self._encoder

    def _tried(self) -> list[Settings]:
        """The present settings and the space's candidates."""
        kind = type(self.settings)
        for name, values in self.hyperparameter_space.items():
            if name not in kind.names() or name in kind.not_swept or name in EXECUTION:
                known = ", ".join(n for n in kind.names() if n not in kind.not_swept and n not in EXECUTION)
                raise SettingError(f"hyperparameter_space: {name}", values, f"what can be searched: {known}")
        swept = self.hyperparameter_space
        return [self.settings, *(candidates(self.settings, swept) if swept else [])]

    def get_hyperparameters(self) -> dict[str, Any]:
        """Those of :attr:`hyperparameter_space`, as they are."""
        return {name: getattr(self.settings, name) for name in self.hyperparameter_space}

    def set_hyperparameters(self, **kwargs: Any) -> Self:
        """Set any of the method's settings by name.

        Raises:
            SettingError: a setting unknown or out of range; a ValueError.
        """
        for name, value in kwargs.items():
            if name not in self.settings.names():
                known = ", ".join(self.settings.names())
                raise SettingError(f"{type(self).__name__}: {name}", value, f"a setting that it has: {known}")
        self.settings = self.settings.replace(**kwargs)
        return self

    def fit(self, data_loader: Iterable[Any]) -> Self:
        """Learn from in-distribution images, in one pass; from images with labels below 0 nothing is.

        Args:
            data_loader: yields ``(images, labels)`` or OpenOOD's dicts. It is not looked at by a method that learns nothing.

        Raises:
            ModelNotSetException: there is no network.
            ValueError: no in-distribution image; a network without linear head; NaN or infinity (names which images).
            TypeError: integer images.
        """
        core = self.core
        if not isinstance(core, LearningDetector):
            return self
        read = known_evidence(core.reader, data_loader, core.settings.plan(), core.settings.execution)
        if isinstance(core, StreamingDetector):
            core.fit_summary(core.summarise(read))
        else:
            core.fit_evidence(Evidence.cat([evidence.cpu() for evidence in read]))
        return self

    def fit_features(self, x: Tensor, y: Tensor) -> Self:
        """:meth:`fit` on features that are there already.

        Args:
            x: (N, D') as :attr:`encoder` gives them; the activations of the network's last layer but one, (N, D), will do
                for a method that perturbs no image.
            y: (N,) labels; rows of those below 0 are left out.

        Raises:
            ModelNotSetException: there is no network.
            ValueError: another shape, no in-distribution row, or features of perturbed images lack.
            RuntimeError: no image has gone through the network yet, so that its head is not known.
        """
        core = self.core
        if not isinstance(core, LearningDetector):
            return self
        if len(y) != len(x):
            raise ValueError(f"y: {len(y)} labels for {len(x)} rows of features")
        core.fit_evidence(self._evidence(x, y))
        return self

    def predict(self, x: Tensor) -> Tensor:
        """(B,) scores of (B, ...) images, larger is more out-of-distribution; on the network's device, float64 where a score
        can be too large for float32 (all methods but MSP).

        Raises:
            ModelNotSetException: there is no network.
            RequiresFittingException: not fitted, or with another network or other settings.
            ValueError: NaN or infinity in images or activations, or a head that is not linear.
            TypeError: integer images.
        """
        return -self._fitted().score(x)

    def predict_features(self, x: Tensor) -> Tensor:
        """:meth:`predict` of (B, D') features; see :meth:`fit_features`, also for what it raises."""
        core = self._fitted()
        if len(x) == 0:
            return x.new_empty(0, dtype=torch.float64)
        return -core.judge(self._evidence(x), core.settings, core.state)[1]

    def _fitted(self) -> Detector[Any, Any]:
        core = self.core
        try:
            core.require_fit()
        except RuntimeError as error:
            if core.state is None:
                raise RequiresFittingException() from error
            raise RequiresFittingException(str(error).replace(" or search(…)", "")) from error
        return core

    def _evidence(self, features: Tensor, labels: Tensor | None = None) -> Evidence:
        """Of features that are there already; with labels, of the in-distribution ones."""
        core = self.core
        head = core.reader.head
        if head is None:
            raise RuntimeError(
                f"model: the head of {type(core.network).__name__} is not known before an image has gone through it; call "
                "encoder(images) or predict(images) once"
            )

        def make(plan: Plan) -> Evidence:
            chosen = features
            if labels is not None:
                known = labels >= 0
                if not bool(known.any()):
                    raise ValueError(NONE)
                chosen = features[known.to(features.device)]
            return evidence_of(chosen.to(head.weight.device), head, plan)

        def wider() -> Plan:
            """What the candidates ask for that need the same images: of others there may be no features."""
            perturbations = core.settings.plan().perturbations
            plans = (settings.plan() for settings in self._tried())
            return Plan.union(plan for plan in plans if plan.perturbations == perturbations)

        given = (features,) if labels is None else (features, labels)
        return self._kept.evidence(given, unwrap(core.network), core.settings.plan(), wider, make)

    def _warn_of_fractions(self) -> None:
        given = getattr(self.settings, "percentile", None)
        largest = max(given) if isinstance(given, tuple) else given
        if largest is not None and largest <= 1:
            warnings.warn(
                f"percentile: {given!r} is in percent here, as in this package and OpenOOD, while pytorch-ood's own "
                "detectors take a fraction",
                UserWarning,
                stacklevel=3,
            )

    def __repr__(self) -> str:
        if self._core is not None:
            return repr(self._core).replace(type(self._core).__name__, type(self).__name__, 1)
        return f"{type(self).__name__}(None, {self._settings!r})"

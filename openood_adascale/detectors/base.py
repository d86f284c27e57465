"""What a method is, and what one does with it: ``fit``, ``score``, ``is_ood``, ``search``, ``save``. Needs no OpenOOD."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import numpy as np
from torch import Tensor, nn

from ..evidence.collect import batches, collect
from ..evidence.evidence import Evidence
from ..evidence.head import is_weight_of
from ..evidence.modes import evaluating
from ..evidence.plan import Plan
from ..evidence.reader import Reader
from .calibration import MadeWith, Validation, threshold
from .file import read, write
from .search import Search, candidates, search_aurocs
from .settings import EXECUTION, Settings

if TYPE_CHECKING:
    from typing_extensions import Self

S = TypeVar("S", bound=Settings)
T = TypeVar("T")
"""What a method has learnt: a tensor or a dict of them, for a pickle; None for one that learns nothing."""


class Detector(ABC, Generic[S, T]):
    """A post-hoc OOD detector on top of a trained classifier. This kind learns nothing.

    A subclass says what its settings ask of an image (``Settings.plan``) and how it judges (:meth:`judge`), by
    arithmetic on :class:`~openood_adascale.evidence.evidence.Evidence`. The network is left as it was found: mode,
    ``requires_grad``, ``.grad``, device and hooks. It is run in eval mode, on its own device and in its own dtype.

    >>> class MaxLogit(Detector):
    ...     judge = lambda self, evidence, settings, state: (evidence.prediction, evidence.logits.amax(1))
    >>> MaxLogit(network).score(images).shape
    torch.Size([24])

    Args:
        network: returns (B, C) logits and ends in a linear layer. Known by OpenOOD, torchvision, timm or own.
        settings: the method's settings; or give them as keyword arguments.

    Raises:
        SettingError: a setting unknown or out of range.
        TypeError: no network, or another method's settings.
    """

    settings_class: ClassVar[type[Settings]] = Settings
    default_sweep: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """What :meth:`search` tries if not told."""
    learns: ClassVar[bool] = False
    """Whether there is anything to score with only after :meth:`fit`."""

    def __init__(self, network: nn.Module, settings: S | None = None, **keywords: Any) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: {type(network).__name__} is not a torch.nn.Module")
        if settings is not None and keywords:
            raise TypeError("give either settings or keyword arguments, not both")
        self.reader = Reader(network)
        """The network as a source of Evidence; detectors of one network may share it."""
        self.settings = (
            cast(S, self.settings_class.from_mapping(keywords, type(self).__name__))
            if settings is None
            else settings
        )
        self.state: T | None = None
        """What was learnt."""
        self.settled = False
        """Whether :meth:`fit` or :meth:`search` has been called."""
        self.learnt_with: MadeWith | None = None
        """What :attr:`state` was learnt with; None for one that learns nothing, or a state that was given."""
        self.validation: Validation | None = None
        """What is remembered for :meth:`threshold`."""

    @property
    def network(self) -> nn.Module:
        """The classifier. With another one, what was learnt is not used: fitting is asked for."""
        return self.reader.network

    @network.setter
    def network(self, network: nn.Module) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: {type(network).__name__} is not a torch.nn.Module")
        if network is not self.reader.network:
            self.settled = False
        self.reader = Reader(network)

    @property
    def settings(self) -> S:
        """The method's settings. What was learnt with others is learnt anew if it can be; else fitting is asked for."""
        return self._settings

    @settings.setter
    def settings(self, settings: S) -> None:
        if type(settings) is not self.settings_class:
            raise TypeError(
                f"settings: {settings!r} is not allowed; {type(self).__name__} takes {self.settings_class.__name__}, or "
                "its settings as keyword arguments"
            )
        self._settings = settings

    def __repr__(self) -> str:
        chosen = {f.name: getattr(self.settings, f.name) for f in dataclasses.fields(self.settings)}
        own = [f"{name}={value!r}" for name, value in chosen.items() if name not in EXECUTION]
        told = ", ".join([type(self.network).__name__, *own])
        return f"{type(self).__name__}({told})" + (", fitted" if self.settled else "")

    @abstractmethod
    def judge(self, evidence: Evidence, settings: S, state: T) -> tuple[Tensor, Tensor]:
        """(N,) predicted classes and (N,) scores, larger is more in-distribution."""

    def fit(self, loader: Iterable[Any], progress: bool | None = None) -> Self:
        """There is nothing to learn: no image is looked at."""
        self.settled = True
        return self

    def score(self, images: Tensor) -> Tensor:
        """(B,) scores of (B, ...) images, larger is more in-distribution; float64, on the network's device."""
        return self.predict(images)[1]

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) predicted classes and (B,) scores of (B, ...) images.

        Raises:
            RuntimeError: not fitted, or with another network or other settings.
            ValueError: NaN or infinity in images or activations, or a head that is not linear.
            TypeError: integer images.
        """
        return self.judge(self._read(images), self.settings, cast(T, self.state))

    def predict_loader(
        self, loader: Iterable[Any], progress: bool | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) predicted classes, scores and labels (−1 where unknown) of all of a loader's images, in its order."""
        columns = zip(*self.predict_batches(loader, progress), strict=True)
        preds, scores, labels = map(np.concatenate, columns)
        return preds, scores, labels

    def predict_batches(
        self, loader: Iterable[Any], progress: bool | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """:meth:`predict_loader` batch by batch, so that memory does not grow with the number of images."""
        self.require_fit(thorough=True)
        plan, execution = self.settings.plan(), self.settings.execution
        for evidence, labels in batches(self.reader, loader, plan, execution, progress, "Score"):
            pred, score = self.judge(evidence, self.settings, cast(T, self.state))
            yield pred.cpu().numpy().astype(int), score.cpu().numpy(), labels

    def calibrate(self, loader: Iterable[Any], progress: bool | None = None) -> Self:
        """Remember the scores of a loader's in-distribution validation images for :meth:`threshold`, in one pass.

        Raises:
            RuntimeError, ValueError, TypeError: as :meth:`predict`; or no images, or scores that are not finite.
        """
        self.validation = Validation.of(self, self.predict_loader(loader, progress)[1])
        return self

    @property
    def validation_scores(self) -> np.ndarray | None:
        """(n_val,) float64, ascending: of in-distribution validation images; None where none are remembered that hold for
        the present network and settings."""
        kept = self.validation
        return None if kept is None or kept.outdated(self.network, self.settings) else kept.scores

    def threshold(self, tpr: float = 0.95) -> float:
        """The score at or above which the share ``tpr`` of the in-distribution validation images lies: the largest of
        their scores that at least so many of them reach.

        The images are those of :meth:`search` or of :meth:`calibrate`, or those that were learnt from, where these were
        validation images kept as Evidence (AdaSCALE).

        Args:
            tpr: within (0, 1].

        Raises:
            SettingError: another ``tpr``.
            RuntimeError: no scores, or of another network or other settings; not fitted.
        """
        return threshold(self, tpr, thorough=True)

    def is_ood(self, images: Tensor, tpr: float = 0.95) -> Tensor:
        """(B,) bool: whether each of (B, ...) images scores below :meth:`threshold`; raises as that and :meth:`score`."""
        least = threshold(self, tpr)
        return self.score(images) < least

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learnt, the settings, the network's digest and :attr:`validation_scores` to a safetensors file.

        Raises:
            RuntimeError: not fitted, or with another network or other settings.
            DetectorFileError: it cannot be written.
        """
        write(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str], network: nn.Module) -> Self:
        """The detector that :meth:`save` wrote, for the same network; nothing in the file is executed.

        Raises:
            DetectorFileError: no file, damaged, of something else, another version, method or network.
            TypeError: ``network`` is no module.
        """
        return read(path, network, cls)

    def search(
        self,
        id_loader: Iterable[Any],
        ood_loader: Iterable[Any],
        sweep: Mapping[str, Sequence[Any]] | None = None,
        progress: bool | None = None,
    ) -> Search[S]:
        """OpenOOD's automatic hyperparameter search in one pass over each loader; then fitted with the best.

        Args:
            id_loader: in-distribution validation images.
            ood_loader: OOD validation images.
            sweep: ``{"<setting>_list": [values]}``, e.g. ``{"percentile_list": [[60, 85], [80, 85]]}``; all
                combinations are tried. None takes :attr:`default_sweep`.
            progress: True or False shows or hides the bars; None shows them in a terminal.

        Raises:
            SettingError: a sweep unknown, empty or out of range.
            ValueError: as :meth:`fit`, or nothing to learn from.
        """
        plan = Plan.union(settings.plan() for settings in self.tried(sweep))
        execution = self.settings.execution
        known, unknown = (
            collect(self.reader, loader, plan, execution, progress, f"{side} validation").evidence
            for side, loader in (("ID", id_loader), ("OOD", ood_loader))
        )
        return self.choose(known, unknown, sweep, progress)

    def tried(self, sweep: Mapping[str, Sequence[Any]] | None = None) -> list[S]:
        """The candidates of :meth:`search` with this sweep."""
        return candidates(self.settings, self.default_sweep if sweep is None else sweep)

    def choose(
        self,
        known: Evidence,
        unknown: Evidence,
        sweep: Mapping[str, Sequence[Any]] | None = None,
        progress: bool | None = None,
    ) -> Search[S]:
        """:meth:`search` on validation images whose Evidence is there already, with all that the sweep asks for."""
        import pandas as pd  # slow to import, and scoring needs none

        for evidence in (known, unknown):
            self._require_own(evidence)
        tried = self.tried(sweep)

        def scores(settings: S) -> tuple[np.ndarray, np.ndarray]:
            state = self._learnt_for(settings, known)
            of_known, of_unknown = (self.judge(e, settings, state)[1].numpy() for e in (known, unknown))
            return of_known, of_unknown

        aurocs = search_aurocs(tried, scores, progress)
        best = int(np.argmax(aurocs))
        self.settings = tried[best]
        self.state = self._learnt_for(self.settings, known)
        self.has_learnt()
        self.validation = Validation.of_evidence(self, known)
        table = pd.DataFrame([settings.as_dict() for settings in tried]).assign(auroc=aurocs)
        return Search(self.settings, aurocs[best], table)

    def _require_own(self, evidence: Evidence) -> None:
        """Raise unless ``evidence`` can be of the present network: its head is among the network's weights."""
        head = evidence.head.weight
        with evaluating(self.network):  # its mode can change its weights
            own = any(is_weight_of(parameter, head) for parameter in self.network.parameters())
        if not own:
            raise ValueError(
                f"evidence: its head W ({head.shape[0]} x {head.shape[1]}) is none of the weights of "
                f"{type(self.network).__name__}; expected Evidence of {type(self).__name__}'s own network"
            )

    def _learnt_for(self, settings: S, known: Evidence) -> T:
        """What a candidate learns."""
        return cast(T, None)

    def require_fit(self, thorough: bool = False) -> None:
        """Raise unless what was learnt holds for the present network and settings.

        Args:
            thorough: look at all of the network's weights and attributes, which takes as long as reading them, rather
                than at whether it has been touched.
        """

    def has_learnt(self) -> None:
        """Note what :attr:`state` was learnt with."""
        self.settled = True

    def _read(self, images: Tensor) -> Evidence:
        self.require_fit()
        return self.reader.read(images, self.settings.plan(), self.settings.execution)

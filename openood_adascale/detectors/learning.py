"""The two kinds of methods that learn: from kept Evidence of few images, and from a stream of many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import nn

from ..evidence.collect import batches, collect
from ..evidence.evidence import Evidence
from ..evidence.histogram import Histogram
from .base import Detector, S, T
from .calibration import MadeWith, Validation
from .search import Search
from .settings import EXECUTION

if TYPE_CHECKING:
    from typing_extensions import Self


class LearningDetector(Detector[S, T]):
    """Learns from the Evidence of in-distribution validation images.

    >>> class Centred(LearningDetector):
    ...     def learn(self, evidence, settings):
    ...         return evidence.logits.mean(0)
    ...     def judge(self, evidence, settings, state):
    ...         return evidence.prediction, -(evidence.logits - state).norm(dim=1)
    >>> Centred(network).fit(val_loader).is_ood(images).shape
    torch.Size([24])
    """

    learns: ClassVar[bool] = True

    @abstractmethod
    def learn(self, evidence: Evidence, settings: S) -> T:
        """What the method keeps of the in-distribution images."""

    def fit(self, loader: Iterable[Any], progress: bool | None = None) -> Self:
        """Learn from in-distribution validation images, in one pass, and remember their scores for :meth:`threshold`.

        Args:
            loader: yields ``(images, labels)``, OpenOOD's dicts or images; labels are not used.
            progress: True or False shows or hides the bar; None shows it in a terminal.

        Raises:
            ValueError: an empty loader, a network without linear head, NaN or infinity (names which images).
            TypeError: integer images.
        """
        plan, execution = self.settings.plan(), self.settings.execution
        return self.fit_evidence(collect(self.reader, loader, plan, execution, progress, "Fit").evidence)

    def fit_evidence(self, evidence: Evidence) -> Self:
        """:meth:`fit` on images whose Evidence is there already.

        Raises:
            ValueError: Evidence of another network.
        """
        self._require_own(evidence)
        self.state = self.learn(evidence, self.settings)
        self.has_learnt()
        self.validation = Validation.of_evidence(self, evidence)
        return self

    def _learnt_for(self, settings: S, known: Evidence) -> T:
        return self.learn(known, settings)

    def has_learnt(self) -> None:
        super().has_learnt()
        self.learnt_with = MadeWith(self.reader.digest(), self.reader.volatile, self.settings.learnt_with())

    def require_fit(self, thorough: bool = False) -> None:
        name = type(self).__name__
        if self.state is None:
            raise RuntimeError(f"{name} is not fitted: call fit(loader) or search(…) first")
        if self.learnt_with is None:  # the state was given, not learnt here
            return
        # Touched, it can be the same: a copy, or on another device. Untouched, it can be another: by way of .data.
        look = thorough or not self.reader.untouched
        if look and not self.learnt_with.is_of(self.network):
            raise RuntimeError(
                f"network: its layers or weights are not those that {name} was fitted with; call fit(loader) or "
                "search(…) again"
            )
        changed = self.learnt_with.changed(self.settings.learnt_with())
        if changed and not self._learn_again(list(changed)):
            told = ", ".join(changed.values())
            raise RuntimeError(
                f"settings: {told} when {name} was fitted; call fit(loader) or search(…) again"
            )

    def _learn_again(self, changed: list[str]) -> bool:
        """Learn with changed settings from what is still there; whether that could be."""
        return False


class Summary(ABC):
    """What a method can learn from, of any number of images, in memory that does not grow with them."""

    @abstractmethod
    def add(self, evidence: Evidence) -> None:
        """Take in some more images; their order does not matter."""

    @abstractmethod
    def result(self) -> Histogram:
        """All that was taken in.

        Raises:
            ValueError: nothing was.
        """


class StreamingDetector(LearningDetector[S, T]):
    """Learns from many (training) images, in constant memory: any of its settings from one :class:`Summary`.

    The images are those that the loader yields, augmented or not; their order does not matter.
    """

    summary_class: ClassVar[type[Summary]]

    def __init__(self, network: nn.Module, settings: S | None = None, **keywords: Any) -> None:
        super().__init__(network, settings, **keywords)
        self.summary: Histogram | None = None
        """What it was fitted with."""
        self._summary_of: tuple[str, ...] | None = None

    @property
    def summary_holds(self) -> bool:
        """Whether :attr:`summary` is of the present network, run as now, and of such images as are to be learnt from."""
        return self.summary is not None and self._summary_of == self._summary_key()

    def _summary_key(self) -> tuple[str, ...]:
        return self.reader.digest(), self.settings.precision, self.settings.source

    @abstractmethod
    def learn_summary(self, summary: Histogram, settings: S) -> T:
        """What the method keeps of the in-distribution images."""

    def learn(self, evidence: Evidence, settings: S) -> T:
        return self.learn_summary(self.summarise([evidence]), settings)

    def summarise(self, parts: Iterable[Evidence]) -> Histogram:
        """All that any settings can be learnt from."""
        summary = self.summary_class()
        for evidence in parts:
            summary.add(evidence)
        return summary.result()

    def summarise_loader(
        self, loader: Iterable[Any], progress: bool | None = None, description: str = "Fit"
    ) -> Histogram:
        """:meth:`summarise` all of a loader's images, in one pass."""
        plan, execution = self.settings.plan(), self.settings.execution
        read = batches(self.reader, loader, plan, execution, progress, description)
        return self.summarise(evidence for evidence, _ in read)

    def fit(self, loader: Iterable[Any], progress: bool | None = None) -> Self:
        """Learn from in-distribution (training) images, in one pass; see :meth:`LearningDetector.fit`. No scores are
        remembered: for :meth:`threshold`, call :meth:`calibrate`."""
        return self.fit_summary(self.summarise_loader(loader, progress))

    def fit_evidence(self, evidence: Evidence) -> Self:
        self._require_own(evidence)
        self.fit_summary(self.summarise([evidence]))
        if self.settings.source == "val":
            self.validation = Validation.of_evidence(self, evidence)
        return self

    def fit_summary(self, summary: Histogram) -> Self:
        """:meth:`fit` on what was summarised already."""
        self._keep(summary)
        self.state = self.learn_summary(summary, self.settings)
        self.has_learnt()
        self.validation = None  # their scores were those of what was learnt before
        return self

    def _keep(self, summary: Histogram) -> None:
        self.summary, self._summary_of = summary, self._summary_key()

    def search(
        self,
        id_loader: Iterable[Any],
        ood_loader: Iterable[Any],
        sweep: Mapping[str, Sequence[Any]] | None = None,
        progress: bool | None = None,
        learn_loader: Iterable[Any] | None = None,
    ) -> Search[S]:
        """OpenOOD's search; see :meth:`Detector.search`.

        Args:
            learn_loader: the images to learn from, in one pass for all candidates. None takes ``id_loader`` with
                ``learn_from='val'``, else what :meth:`fit` learnt from.
        """
        self.tried(sweep)  # a bad sweep is to be known before the pass
        if learn_loader is not None:
            self._keep(self.summarise_loader(learn_loader, progress, "Images to learn from"))
        elif self.settings.source == "val":
            self.summary = None
        elif not self.summary_holds:
            what = (
                "what it was fitted with is of another network, precision or source" if self.summary else ""
            )
            raise ValueError(
                f"learn_loader: None is not allowed; {type(self).__name__} learns from training images, or from the "
                f"validation images with learn_from='val'{'; ' if what else ''}{what}"
            )
        return super().search(id_loader, ood_loader, sweep, progress)

    def choose(
        self,
        known: Evidence,
        unknown: Evidence,
        sweep: Mapping[str, Sequence[Any]] | None = None,
        progress: bool | None = None,
    ) -> Search[S]:
        if self.summary is None:
            self._keep(self.summarise([known]))
        return super().choose(known, unknown, sweep, progress)

    def _learnt_for(self, settings: S, known: Evidence) -> T:
        return self.learn_summary(cast(Histogram, self.summary), settings)  # which choose() has seen to

    def _learn_again(self, changed: list[str]) -> bool:
        if self.summary is None or {*changed} & {*self.settings.not_swept, *EXECUTION}:
            return False
        self.state = self.learn_summary(self.summary, self.settings)
        self.has_learnt()
        return True

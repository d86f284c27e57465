"""Detectors over any PyTorch classifier: fit, score, search. AdaSCALE is one; none needs OpenOOD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import functional as F
from .encode import NotFinite, encode, prepare
from .evidence import Evidence, Plan
from .models import Classifier
from .settings import AdaSCALESettings, Settings, candidates

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Search:
    """Outcome of a hyperparameter search."""

    settings: Any
    """The best candidate's; the first of equals, as in OpenOOD's Evaluator."""
    auroc: float
    """Its AUROC on the validation data, in percent."""
    table: pd.DataFrame
    """One row per candidate, in OpenOOD's order: its settings and ``auroc`` in percent."""


def unpack(batch: Any) -> tuple[Tensor, np.ndarray]:
    """Images and labels of a loader's batch: OpenOOD's dict, ``(images, labels, …)`` or the images alone.

    Labels that are not there, or are not one whole number per image, become −1.
    """
    labels = None
    if isinstance(batch, Mapping):
        if "data" not in batch:
            raise TypeError(
                f"loader: its batches are mappings with {sorted(batch)}; expected 'data' (and 'label')"
            )
        images, labels = batch["data"], batch.get("label")
    elif isinstance(batch, tuple | list):
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
    else:
        images = batch
    try:
        return images, np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels).astype(int).reshape(
            len(images)
        )
    except (TypeError, ValueError):
        return images, np.full(len(images), -1)


class Detector(Generic[S]):
    """A post-hoc OOD detector on top of a trained classifier.

    Subclasses say what their settings ask of an image (``Settings.plan``), what they learn from the validation
    images (:meth:`learn`) and how they judge (:meth:`judge`); all but the first are arithmetic on
    :class:`~openood_adascale.evidence.Evidence`.

    The network is left as it was found: mode, ``requires_grad``, ``.grad``, device and hooks. It is run in eval
    mode, on its own device and in its own dtype.

    Args:
        network: returns (B, C) logits and ends in a linear layer. Known by OpenOOD, torchvision, timm or own.
        settings: the method's settings; or give them as keyword arguments.

    Raises:
        SettingError: a setting unknown or out of range.
    """

    settings_class: ClassVar[type[Settings]] = Settings
    default_sweep: ClassVar[dict[str, list[Any]]] = {}
    """What :meth:`search` tries if not told."""
    needs_fit: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    """Learns from a :meth:`summary <summarise>` of many (training) images instead of from kept Evidence of few."""

    def __init__(self, network: nn.Module, settings: S | None = None, **keywords: Any) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: {type(network).__name__} is not a torch.nn.Module")
        if settings is not None and keywords:
            raise TypeError("give either settings or keyword arguments, not both")
        self.network = network
        self.settings: Any = settings or self.settings_class.from_mapping(keywords, type(self).__name__)
        self.state: Any = None
        self.summary: Any = None
        """What a method that :attr:`streams` was fitted with: any of its settings can be learnt from it."""
        self.settled = False
        """Whether :meth:`fit` or :meth:`search` has been called."""
        self._classifier: Classifier | None = None

    # What a method is.

    def learn(self, evidence: Any, settings: S) -> Any:
        """What the method keeps of the in-distribution images: a tensor or a dict of them, for a pickle.

        Args:
            evidence: the images' :class:`~openood_adascale.evidence.Evidence`, or what :meth:`summarise` made of it.
        """
        return None

    def summarise(self, batches: Iterable[Evidence]) -> Any:
        """Where the method :attr:`streams`: all that it can learn from, for any settings, in constant memory."""
        raise NotImplementedError

    def judge(self, evidence: Evidence, settings: S, state: Any) -> tuple[Tensor, Tensor]:
        """(N,) predicted classes and (N,) scores."""
        raise NotImplementedError

    # What one does with it.

    def fit(self, loader: Iterable[Any], progress: bool | None = None) -> Any:
        """Learn from in-distribution images, in one pass.

        Args:
            loader: of validation images, or where the method :attr:`streams` of training images; yields
                ``(images, labels)``, OpenOOD's dicts or images; labels are not used.
            progress: True or False shows or hides the bar; None shows it in a terminal.

        Returns:
            The detector itself.

        Raises:
            ValueError: an empty loader, a network without linear head, NaN or infinity (names which images).
            TypeError: integer images.
        """
        self._classifier = None  # the head may be another by now
        if self.streams:
            self.summary = self.study(loader, progress)
            self.state = self.learn(self.summary, self.settings)
        else:
            evidence, _ = self.collect(loader, self.settings.plan(), progress, "Fit")
            self.state = self.learn(evidence, self.settings)
        self.settled = True
        return self

    def study(self, loader: Iterable[Any], progress: bool | None = None, description: str = "Fit") -> Any:
        """:meth:`summarise` all of a loader's images, in one pass and in memory that does not grow with them.

        The images are those that the loader yields, augmented or not; their order does not matter.
        """
        batches = self._batches(loader, self.settings.plan(), progress, description)
        return self.summarise(evidence for evidence, _ in batches)

    def score(self, images: Tensor) -> Tensor:
        """(B,) scores of (B, ...) images, larger is more in-distribution; float64, on the network's device."""
        return self.predict(images)[1]

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) predicted classes and (B,) scores of (B, ...) images.

        Raises:
            RuntimeError: not fitted.
            ValueError: NaN or infinity in images or activations.
            TypeError: integer images.
        """
        self._require_fit()
        return self.judge(self.evidence(images, self.settings.plan()), self.settings, self.state)

    def infer(
        self, loader: Iterable[Any], progress: bool | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predictions, scores and labels of all of a loader's images, as OpenOOD's ``inference`` returns them."""
        self._require_fit()
        plan = self.settings.plan()
        parts = []
        for evidence, label in self._batches(loader, plan, progress, "Score"):
            pred, score = self.judge(evidence, self.settings, self.state)
            parts.append((pred.cpu().numpy(), score.cpu().numpy(), label))
        preds, scores, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return preds.astype(int), scores, labels

    def search(
        self,
        id_loader: Iterable[Any],
        ood_loader: Iterable[Any],
        sweep: Mapping[str, Sequence[Any]] | None = None,
        progress: bool | None = None,
        learn_loader: Iterable[Any] | None = None,
    ) -> Search:
        """OpenOOD's automatic hyperparameter search in one pass over each loader; then fitted with the best.

        Args:
            id_loader: in-distribution validation images, which the method also learns from, unless it
                :attr:`streams`.
            ood_loader: OOD validation images.
            sweep: ``{"<setting>_list": [values]}``, e.g. ``{"percentile_list": [[60, 85], [80, 85]]}``; all
                combinations are tried. None takes :attr:`default_sweep`.
            progress: as in :meth:`fit`.
            learn_loader: where the method :attr:`streams`, the images that it learns from, in one pass for all
                candidates. None takes ``id_loader`` with ``learn_from='val'``, else what :meth:`fit` learnt from.

        Raises:
            SettingError: a sweep unknown, empty or out of range.
            ValueError: as :meth:`fit`, or nothing to learn from.
        """
        tried = candidates(self.settings, self.default_sweep if sweep is None else sweep)
        plan = Plan.union(settings.plan() for settings in tried)
        self._classifier = None  # the head may be another by now
        if self.streams:
            self._prepare_stream(learn_loader, progress)
        elif learn_loader is not None:
            raise TypeError(f"learn_loader: {type(self).__name__} learns from id_loader; expected None")
        known, _ = self.collect(id_loader, plan, progress, "ID validation")
        unknown, _ = self.collect(ood_loader, plan, progress, "OOD validation")
        truth = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
        if self.streams and learn_loader is None and self.settings.learns_from() == "val":
            self.summary = self.summarise([known])
        learnt_from = self.summary if self.streams else known
        aurocs = []
        for settings in tqdm(tried, desc="Candidates", disable=_disable(progress)):
            state = self.learn(learnt_from, settings)
            scores = [self.judge(evidence, settings, state)[1].numpy() for evidence in (known, unknown)]
            aurocs.append(100 * roc_auc_score(truth, np.concatenate(scores)))
        best = int(np.argmax(aurocs))
        self.settings = tried[best]
        self.state = self.learn(learnt_from, self.settings)
        self.settled = True
        table = pd.DataFrame([settings.as_dict() for settings in tried]).assign(auroc=aurocs)
        return Search(self.settings, aurocs[best], table)

    def _prepare_stream(self, loader: Iterable[Any] | None, progress: bool | None) -> None:
        if loader is not None:
            self.summary = self.study(loader, progress, "Images to learn from")
        elif self.summary is None and self.settings.learns_from() != "val":
            raise ValueError(
                f"learn_loader: None is not allowed; {type(self).__name__} learns from training images, or from the "
                "validation images with learn_from='val'"
            )

    # The pass over images that all of the above share.

    def evidence(self, images: Tensor, plan: Plan) -> Evidence:
        """Evidence of one batch, on the network's device."""
        if self._classifier is None:
            self._classifier = Classifier(self.network, prepare(self.network, images))
        settings = self.settings
        encoded = encode(
            self._classifier, images, plan.perturbations, settings.precision, settings.memory_format
        )
        with torch.no_grad():
            return Evidence.of(encoded, plan)

    def collect(
        self, loader: Iterable[Any], plan: Plan, progress: bool | None = None, description: str = ""
    ) -> tuple[Evidence, np.ndarray]:
        """Evidence and labels of all of a loader's images, in main memory, in one pass."""
        parts, labels = [], []
        for evidence, label in self._batches(loader, plan, progress, description):
            parts.append(evidence.cpu())
            labels.append(label)
        return Evidence.cat(parts), np.concatenate(labels)

    def _batches(
        self, loader: Iterable[Any], plan: Plan, progress: bool | None, description: str
    ) -> Iterator[tuple[Evidence, np.ndarray]]:
        seen = 0
        for batch in tqdm(loader, desc=description, disable=_disable(progress)):
            images, labels = unpack(batch)
            try:
                yield self.evidence(images, plan), labels
            except NotFinite as error:
                raise error.shifted(seen) from None
            seen += len(labels)
        if not seen:
            raise ValueError("loader: it yields no images; expected at least one batch")

    def _require_fit(self) -> None:
        if self.needs_fit and self.state is None:
            raise RuntimeError(f"{type(self).__name__} is not fitted: call fit(loader) or search(…) first")


def _disable(progress: bool | None) -> bool | None:
    return None if progress is None else not progress


class AdaSCALE(Detector[AdaSCALESettings]):
    """AdaSCALE (Algorithm 1 of the paper), variants A and L.

    >>> detector = AdaSCALE(network, variant="A", percentile=(80, 85)).fit(id_validation_loader)
    >>> scores = detector.score(images)            # larger is more in-distribution
    >>> detector.search(id_validation_loader, ood_validation_loader).table

    Its :attr:`state` is the sorted Q' of the validation images, (n_val,) float64.
    """

    settings_class = AdaSCALESettings
    default_sweep: ClassVar[dict[str, list[Any]]] = {
        "percentile_list": [
            [low, high]
            for low in (60, 65, 70, 75, 80, 85, 90, 95)
            for high in (65, 70, 75, 80, 85, 90, 95, 99)
            if low < high
        ]
    }
    needs_fit = True

    def learn(self, evidence: Evidence, settings: AdaSCALESettings) -> Tensor:
        """Sorted Q' of ``num_samples`` of the images: the CDF F (eq. of the adaptive percentile)."""
        values = _oodness(evidence, settings)
        if settings.num_samples is not None and settings.num_samples < len(values):
            # Counted along the energy, so that the choice is of images, whatever the loader's order.
            order = F.energy(evidence.logits).argsort(stable=True)
            generator = torch.Generator("cpu").manual_seed(settings.seed)
            chosen = torch.randperm(len(values), generator=generator, device="cpu")[: settings.num_samples]
            values = values[order[chosen.to(order.device)]]
        return values.sort().values.cpu()

    def judge(self, evidence: Evidence, settings: AdaSCALESettings, state: Tensor) -> tuple[Tensor, Tensor]:
        factor = evidence.scaling_factor(_percentiles(evidence, settings, state))
        if settings.variant == "A":
            logits = F.scale_activation_logits(evidence.logits, evidence.head.bias, factor)
        else:
            logits = F.scale_logits(evidence.logits, factor)
        return logits.argmax(1), F.energy(logits)

    def percentiles(self, images: Tensor) -> Tensor:
        """(B,) adaptive percentiles p of (B, ...) images, in percent; low where an image moves much."""
        self._require_fit()
        return _percentiles(self.evidence(images, self.settings.plan()), self.settings, self.state)


def _percentiles(evidence: Evidence, settings: AdaSCALESettings, state: Tensor) -> Tensor:
    values = _oodness(evidence, settings)
    cdf = F.empirical_cdf(state.to(values.device, values.dtype), values)
    return F.adaptive_percentile(cdf, *settings.percentile)


def _oodness(evidence: Evidence, settings: AdaSCALESettings) -> Tensor:
    return evidence.oodness(settings.perturbation, settings.k1, settings.k2, settings.lmbda)

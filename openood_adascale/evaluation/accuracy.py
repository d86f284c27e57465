"""Top-1 accuracy over labelled images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..data.labels import check_labels, match_folders, relabelled
from ..errors import SettingError
from ..features.collect import iterate_statistics
from ..features.extractor import FLOAT32, FeatureExtractor, prepare_images
from ..features.head import logits_in_eval_mode
from ..features.loading import UNLABELLED, plain_labels, progress_over, unpack
from ..features.statistics import FeatureRequest
from .per_image import folder_classes


class Accuracy:
    """Counter of right predictions; the labels of every batch are held against the network.

    Args:
        classes: Names of the network's classes, to match class folders to (empty if they are unknown).
        wanted: False if the accuracy is known already: labels that are no classes then count as unlabelled.
    """

    def __init__(self, classes: Sequence[str] = (), wanted: bool = True) -> None:
        self._classes, self._wanted = classes, wanted
        self._hits = self._labelled = self._total = 0
        self._folders: tuple[str, ...] = ()
        self._matched: list[int] | None = None  # the class of each folder
        self._one_folder = False

    def begin(self, loader: Iterable[Any]) -> None:
        """Begin with the images of a loader."""
        self._folders, self._matched = folder_classes(getattr(loader, "dataset", None)), None
        # ImageFolder needs a folder in its root: a single one is how unlabelled images are given to it.
        self._one_folder = len(self._folders) == 1 and self._folders[0] not in self._classes

    def add(self, predictions: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
        """Count a batch, and return its (B,) labels as classes of the network with C classes, −1 for unlabelled."""
        self._total += len(labels)
        if self._one_folder:
            return np.full(len(labels), UNLABELLED)
        try:
            if self._folders and self._matched is None:
                self._matched = match_folders(self._folders, count, self._classes, "id")
            if self._matched is not None:
                check_labels(labels, len(self._matched), "id: labels")
                labels = relabelled(labels, self._matched)
            labelled = check_labels(labels, count, "id: labels")
        except SettingError as error:
            if self._wanted:
                hint = "or known_accuracy=NUMBER, with which the labels are not used"
                raise SettingError(error.name, error.value, f"{error.allowed}; {hint}") from error
            known = (labels >= 0) & (labels < count) & (self._matched is not None or not self._folders)
            return np.where(known, labels, UNLABELLED)
        self._hits += int((predictions == labels)[labelled].sum())
        self._labelled += int(labelled.sum())
        return plain_labels(labels)

    def percent(self) -> float:
        """Return the accuracy over the labelled images in percent; a warning gives the number of unlabelled ones.

        Images in a single folder that is not a class of the network have the accuracy NaN and a warning.
        """
        if not self._total:
            raise ValueError("id: loader: it yields no images; expected at least one batch")
        if self._labelled == self._total:
            return 100 * self._hits / self._total
        if self._labelled:
            told = f"is that of {self._labelled} of {self._total} images; the others have no label"
        elif self._one_folder:
            folder = repr(self._folders[0])
            told = f"is left out: the images are in one folder, {folder}, and the network has more classes"
        else:
            raise ValueError(
                f"id: none of the {self._total} images has a label, so that there is no accuracy; expected loaders of "
                "(images, labels), or known_accuracy=math.nan, which leaves ACC out"
            )
        warnings.warn(f"id: ACC {told}", UserWarning, stacklevel=3)
        return 100 * self._hits / self._labelled if self._labelled else math.nan


def accuracy(
    network: nn.Module,
    *loaders: Iterable[Any],
    classes: Sequence[str] = (),
    progress: bool | None = None,
    cached: bool = False,
) -> float:
    """Return the network's top-1 accuracy in percent over all images of ``loaders``; its state is restored.

    With ``cached``, the logits come from the feature cache in use, and the network must have a linear head.
    """
    counter = Accuracy(classes)
    for loader in loaders:
        counter.begin(loader)
        for logits, labels in _logits(network, loader, progress, cached):
            counter.add(logits.argmax(1).cpu().numpy(), labels, logits.shape[1])
    return counter.percent()


def _logits(
    network: nn.Module, loader: Iterable[Any], progress: bool | None, cached: bool
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Yield the logits and labels of each batch."""
    if cached:
        request, extractor = FeatureRequest(), FeatureExtractor(network)
        batches = iterate_statistics(extractor, loader, request, FLOAT32, progress, "Accuracy")
        yield from ((statistics.logits, labels) for statistics, labels in batches)
        return
    for images, labels in map(unpack, progress_over(loader, progress, "Accuracy")):
        if len(images):
            yield logits_in_eval_mode(network, prepare_images(network, images)), labels

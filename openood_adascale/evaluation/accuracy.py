"""Top-1 accuracy over labelled images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import nn

from ..data.labels import check_labels, match_folders
from ..errors import SettingError
from ..features.extractor import prepare_images
from ..features.head import logits_in_eval_mode
from ..features.loading import UNLABELLED, plain_labels, progress_over, unpack
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
        self._matched: np.ndarray | None = None
        self._one_folder = False

    def begin(self, loader: Iterable[Any]) -> None:
        """Begin with the images of a loader."""
        self._folders, self._matched = folder_classes(getattr(loader, "dataset", None)), None
        # ImageFolder needs a folder in its root: a single one is how unlabelled images are given to it.
        self._one_folder = len(self._folders) == 1 and self._folders[0] not in self._classes

    def add(self, predictions: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
        """Count a batch, and return its labels as classes of the network, −1 for unlabelled.

        Args:
            predictions: (B,) predicted classes.
            labels: (B,) labels of the loader.
            count: C, the number of classes of the network.

        Raises:
            SettingError: Labels that are no classes, or class folders that are not those of the network.
        """
        if self._one_folder:
            self._total += len(labels)
            return np.full(len(labels), UNLABELLED)
        try:
            if self._folders and self._matched is None:
                self._matched = np.array(match_folders(self._folders, count, self._classes, "id"))
            if self._matched is not None:
                check_labels(labels, len(self._matched), "id: labels")
                labels = np.where(labels >= 0, self._matched[np.maximum(labels, 0)], labels)
            labelled = check_labels(labels, count, "id: labels")
        except SettingError as error:
            if not self._wanted:
                known = (labels >= 0) & (labels < count) & (self._matched is not None or not self._folders)
                return np.where(known, labels, UNLABELLED)
            hint = "or known_accuracy=NUMBER, with which the labels are not used"
            raise SettingError(error.name, error.value, f"{error.allowed}; {hint}") from error
        self._hits += int((predictions == labels)[labelled].sum())
        self._labelled += int(labelled.sum())
        self._total += len(labels)
        return plain_labels(labels)

    def percent(self) -> float:
        """Return the accuracy over the labelled images in percent; a warning tells of unlabelled ones.

        Images in a single folder, which is no class of the network, have the accuracy NaN and a warning.

        Raises:
            ValueError: No images, or no label.
        """
        if not self._total:
            raise ValueError("id: loader: it yields no images; expected at least one batch")
        if not self._labelled and self._one_folder:
            warnings.warn(
                f"id: ACC is left out: the images are in one folder, {self._folders[0]!r}, and the network has more classes",
                UserWarning,
                stacklevel=3,
            )
            return math.nan
        if not self._labelled:
            raise ValueError(
                f"id: none of the {self._total} images has a label, so that there is no accuracy; expected loaders of "
                "(images, labels), or known_accuracy=math.nan, which leaves ACC out"
            )
        if self._labelled < self._total:
            warnings.warn(
                f"id: ACC is that of {self._labelled} of {self._total} images; the others have no label",
                UserWarning,
                stacklevel=3,
            )
        return 100 * self._hits / self._labelled


def accuracy(
    network: nn.Module,
    *loaders: Iterable[Any],
    classes: Sequence[str] = (),
    progress: bool | None = None,
) -> float:
    """Return the network's top-1 accuracy in percent over all images of ``loaders``; its state is restored.

    Raises:
        ValueError: No images, no labels, or labels that are no classes of the network.
    """
    counter = Accuracy(classes)
    for loader in loaders:
        counter.begin(loader)
        for batch in progress_over(loader, progress, "Accuracy"):
            images, labels = unpack(batch)
            if len(images):
                logits = logits_in_eval_mode(network, prepare_images(network, images))
                counter.add(logits.argmax(1).cpu().numpy(), labels, logits.shape[1])
    return counter.percent()

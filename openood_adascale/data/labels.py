"""Labels and classes held against a network: the one place that decides what a label means.

Labels are integers from 0 to C − 1 for a network with C classes, or −1 for unlabelled images. Class folders are matched to
classes by name if names are known; otherwise there must be C of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..errors import SettingError
from ..features.loading import NOT_LABELS, UNLABELLED
from .files import ImageFiles
from .listing import read_text

_SHOWN = 8


def check_labels(labels: np.ndarray, count: int, name: str = "labels") -> np.ndarray:
    """Return an (N,) mask of the labelled images.

    Args:
        labels: (N,) int64, as :func:`~openood_adascale.features.loading.unpack` returns them.
        count: C, the number of classes of the network.
        name: Name of the images in errors.

    Raises:
        SettingError: A label that is no class of the network; names the value and C.
    """
    bad = (labels != UNLABELLED) & ((labels < 0) | (labels >= count))
    if bad.any():
        value = int(labels[np.argmax(bad)])
        expected = f"integers from 0 to {count - 1}, one for each image, as the network has {count} classes (−1: unlabelled)"
        if value in NOT_LABELS:
            raise SettingError(name, _Kind(NOT_LABELS[value]), expected)
        raise SettingError(name, value, f"{expected}; {int(bad.sum())} of {len(labels)} labels are none")
    return labels != UNLABELLED


class _Kind(str):
    """Text that an error shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def match_folders(
    folders: Sequence[str], count: int, names: Sequence[str] = (), setting: str = "labels"
) -> list[int]:
    """Return the class of each class folder.

    Args:
        folders: Names of the folders, in the order of their numbers.
        count: C, the number of classes of the network.
        names: Names of the classes 0, 1, … (empty if they are unknown).
        setting: Name of the images in errors.

    Raises:
        SettingError: Names of another number than C, folders of other names, or, without names, another number of
            folders than C.
    """
    if names and len(names) != count:
        raise SettingError(
            f"{setting}: classes",
            _Kind(f"{len(names)} names"),
            f"{count}, one for each of the network's {count} classes",
        )
    if names and list(folders) == list(
        names
    ):  # labels that are classes already; names may repeat (ImageNet's do)
        return list(range(count))
    index = {name: number for number, name in enumerate(names)}
    unknown = [folder for folder in folders if folder not in index]
    if names and not unknown:
        if twice := next((folder for folder in folders if list(names).count(folder) > 1), None):
            raise SettingError(
                f"{setting}: classes", twice, "different names, since folders are matched to them"
            )
        return [index[folder] for folder in folders]
    if names and len(unknown) < len(folders):
        raise SettingError(
            f"{setting}: class folder", unknown[0], f"the name of a class: {_some(names)} ({count} classes)"
        )
    if len(folders) != count:
        told = f"{len(folders)} class folders ({_some(folders)})"
        hint = (
            "or folders with the names of the classes"
            if names
            else "or the names of the classes (--classes FILE, Benchmark.classes)"
        )
        raise SettingError(
            setting, _Kind(told), f"{count}, one for each of the network's {count} classes; {hint}"
        )
    return list(range(count))


def with_classes(
    files: ImageFiles, count: int, names: Sequence[str] = (), setting: str = "labels", unlabelled: bool = True
) -> ImageFiles:
    """Return images with labels that are the network's classes.

    Args:
        files: Images; the labels of class folders are their numbers.
        count: C, the number of classes of the network.
        names: Names of the classes 0, 1, … (default: those of the folders, of which there must be C then).
        setting: Name of the images in errors.
        unlabelled: False if images without a label are an error.

    Raises:
        SettingError: As :func:`match_folders` and :func:`check_labels`; names the first image.
    """
    labels, classes = np.asarray(files.labels, dtype=np.int64), list(names)
    if files.classes:
        # A folder without images need not be a class.
        used = sorted({label for label in files.labels if label >= 0})
        matched = np.zeros(len(files.classes), dtype=np.int64)
        folders = files.classes
        if names and any(folder in names for folder in folders):
            folders = [files.classes[label] for label in used]
            matched[used] = match_folders(folders, count, names, setting)
        else:
            matched[:] = match_folders(folders, count, names, setting)
            classes = classes or list(folders)
        labels = np.where(labels >= 0, matched[np.maximum(labels, 0)], labels)
    bad = (labels < (UNLABELLED if unlabelled else 0)) | (labels >= count)
    if bad.any():
        place = int(np.argmax(bad))
        told = (
            f"{files.paths[place]!r} has {labels[place]}"
            if labels[place] != -1
            else f"{files.paths[place]!r} has none"
        )
        raise SettingError(
            setting,
            int(labels[place]),
            f"a class from 0 to {count - 1}{' or −1 (unlabelled)' if unlabelled else ''} for each image, as the network has "
            f"{count} classes; {told}",
        )
    return ImageFiles(files.paths, labels.tolist(), files.transform, classes)


def read_class_names(file: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the classes 0, 1, … in a text file, one in each line.

    Raises:
        SettingError: It cannot be read as text, is empty, or has an empty line between others.
    """
    name = os.fspath(file)
    names = [line.strip() for line in read_text("classes", name).rstrip().splitlines()]
    if not names or not all(names):
        where = f"line {names.index('') + 1} has none" if names else "it is empty"
        raise SettingError("classes", name, f"a name in each line; {where}")
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise SettingError("classes", name, "a text file in UTF-8") from error
    return tuple(names)


def _some(names: Sequence[str]) -> str:
    more = f", … ({len(names)})" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more

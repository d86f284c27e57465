"""Labels and classes, checked against a network.

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


def check_labels(
    labels: np.ndarray, count: int, name: str = "labels", paths: Sequence[str] = (), unlabelled: bool = True
) -> np.ndarray:
    """Return an (N,) mask of the labelled images; an error names value, C and, if ``paths`` are given, the first image.

    Args:
        labels: (N,) int64, as :func:`~openood_adascale.features.loading.unpack` returns them.
        count: C, the number of classes of the network.
        name: Name of the images in errors.
        paths: Their files.
        unlabelled: False if images without a label are an error.
    """
    bad = (labels < (UNLABELLED if unlabelled else 0)) | (labels >= count)
    if bad.any():
        first = int(np.argmax(bad))
        value = int(labels[first])
        allowed = f"integers from 0 to {count - 1}, one for each image, as the network has {count} classes"
        allowed += " (−1: unlabelled)" * unlabelled
        if value in NOT_LABELS:
            raise SettingError(name, _Unquoted(NOT_LABELS[value]), allowed)
        image = f"; {paths[first]!r} has {'none' if value == UNLABELLED else value}" if paths else ""
        raise SettingError(
            name, value, f"{allowed}; {int(bad.sum())} of {len(labels)} labels are none{image}"
        )
    return labels != UNLABELLED


def relabelled(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Return (N,) numbers of class folders as classes, given the class of each folder; negative ones are kept."""
    return np.where(labels >= 0, np.asarray(classes)[np.maximum(labels, 0)], labels)


class _Unquoted(str):
    """Text that an error shows as it is."""

    __slots__ = ()
    __repr__ = str.__str__


def match_folders(
    folders: Sequence[str], count: int, names: Sequence[str] = (), setting: str = "labels"
) -> list[int]:
    """Return the class of each class folder: that of its name, or its own number if names are unknown.

    Args:
        folders: Names of the folders, in the order of their numbers.
        count: C, the number of classes of the network.
        names: Names of the classes 0, 1, … (empty if they are unknown).
        setting: Name of the images in errors.
    """
    one_each = f"{count}, one for each of the network's {count} classes"
    if names and len(names) != count:
        raise SettingError(f"{setting}: classes", _Unquoted(f"{len(names)} names"), one_each)
    if list(folders) == list(names):  # labels that are classes already; names may repeat (ImageNet's do)
        return list(range(count))
    numbers = {name: number for number, name in enumerate(names)}
    unknown = [folder for folder in folders if folder not in numbers]
    if names and not unknown:
        if twice := next((folder for folder in folders if list(names).count(folder) > 1), None):
            allowed = "different names, since folders are matched to them"
            raise SettingError(f"{setting}: classes", twice, allowed)
        return [numbers[folder] for folder in folders]
    if names and len(unknown) < len(folders):
        allowed = f"the name of a class: {_some(names)} ({count} classes)"
        raise SettingError(f"{setting}: class folder", unknown[0], allowed)
    if len(folders) != count:
        hint = "the names of the classes (--classes FILE, Benchmark.classes)"
        hint = "folders with the names of the classes" if names else hint
        told = _Unquoted(f"{len(folders)} class folders ({_some(folders)})")
        raise SettingError(setting, told, f"{one_each}; or {hint}")
    return list(range(count))


def with_classes(
    files: ImageFiles, count: int, names: Sequence[str] = (), setting: str = "labels", unlabelled: bool = True
) -> ImageFiles:
    """Return images with labels that are the network's classes; see :func:`match_folders` and :func:`check_labels`.

    Without ``names``, those of the class folders are used, of which there must be C then.
    """
    labels, classes = np.asarray(files.labels, dtype=np.int64), list(names)
    if folders := files.classes:
        numbers = list(range(len(folders)))
        if any(folder in names for folder in folders):
            numbers = sorted({*files.labels} - {UNLABELLED})  # a folder without images need not be a class
        matched = match_folders([folders[number] for number in numbers], count, names, setting)
        found = dict(zip(numbers, matched, strict=True))
        labels = relabelled(labels, [found.get(number, UNLABELLED) for number in range(len(folders))])
        classes = classes or folders
    check_labels(labels, count, setting, files.paths, unlabelled)
    return ImageFiles(files.paths, labels.tolist(), files.transform, classes)


def read_class_names(file: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the classes 0, 1, … in a text file, one in each line."""
    name = os.fspath(file)
    text = read_text("classes", name).rstrip()
    names = [line.strip() for line in text.splitlines()]
    if not all(names) or not names:
        where = f"line {names.index('') + 1} has none" if names else "it is empty"
        raise SettingError("classes", name, f"a name in each line; {where}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SettingError("classes", name, "a text file in UTF-8") from error
    return tuple(names)


def _some(names: Sequence[str]) -> str:
    more = f", … ({len(names)})" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more

"""Folders of images, OpenOOD's image lists and CSVs → a data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from ..errors import ImageError, SettingError
from ..evidence.batch import watched
from .images import extensions, read_image
from .listing import Listed, from_csv, from_list, in_folder

Path = str | os.PathLike[str]
FOLDERS = "folders"
"""As ``labels``: each class in a folder of its own."""
_BATCH = 32


class ImageFiles(data.Dataset[tuple[Tensor, int]]):
    """Image files as a data set: of each a float tensor (3, H, W) and its class.

    Args:
        paths: of the files.
        labels: their classes, −1 for unknown; None for all unknown.
        transform: of a PIL image in RGB, the tensor; None gives its pixels between 0 and 1.
        classes: names of the classes 0, 1, …, where they are known.

    Raises:
        SettingError: not as many labels as paths.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int] | None = None,
        transform: Callable[[Any], Tensor] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.paths = list(paths)
        self.labels = [-1] * len(self.paths) if labels is None else [int(label) for label in labels]
        self.transform = transform
        self.classes = list(classes)
        if len(self.labels) != len(self.paths):
            raise SettingError(
                "labels", f"{len(self.labels)} of them", f"one for each of {len(self.paths)} images"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image and class.

        Raises:
            ImageError: the image cannot be read, or the transform cannot take it.
        """
        path = self.paths[index]
        return transformed(read_image(path), self.transform, path), self.labels[index]

    @property
    def root(self) -> str:
        """The folder that all files are in; nothing where there is none."""
        try:
            return os.path.commonpath([os.path.dirname(path) for path in self.paths])
        except ValueError:  # no files, or on several drives
            return ""

    def with_transform(self, transform: Callable[[Any], Tensor] | None) -> ImageFiles:
        """The same files, read with another transform."""
        return ImageFiles(self.paths, self.labels, transform, self.classes)

    def without(self, broken: Iterable[tuple[str, str]]) -> ImageFiles:
        """The same but for some files.

        Args:
            broken: path and reason of each, as :func:`find_broken` gives them.
        """
        left_out = {path for path, _ in broken}
        kept = [
            (path, label) for path, label in zip(self.paths, self.labels, strict=True) if path not in left_out
        ]
        return ImageFiles(
            [path for path, _ in kept], [label for _, label in kept], self.transform, self.classes
        )


def transformed(image: Any, transform: Callable[[Any], Tensor] | None, path: str) -> Tensor:
    """What ``transform`` makes of a PIL image; its pixels between 0 and 1 where that is None.

    Raises:
        ImageError: the transform cannot take it.
    """
    if transform is None:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    try:
        return transform(image)
    except Exception as error:  # it may be anyone's
        raise ImageError(path, f"its transform failed ({type(error).__name__}: {error})") from error


def find_images(where: Path, labels: Path | None = None, root: Path | None = None) -> ImageFiles:
    """The images in a folder or a list.

    Args:
        where: a folder, with all that are in folders in it, sorted by name, numbers as numbers (hidden files and
            ``__MACOSX`` are passed over, links followed, but not back to a folder that they are in); an image; an image
            list of OpenOOD's (.txt: path and label in each line); or a CSV with the columns path and, perhaps, label.
        labels: of a folder: ``folders`` (each folder in it is a class; sorted as torchvision's ``ImageFolder`` sorts them,
            character by character, they are 0, 1, …) or a CSV with a path and label for each; None: unknown, −1.
        root: the folder that a list's paths begin at; None is the one that the list is in.

    Raises:
        SettingError: there is no image, a label is missing or no whole number, or something cannot be read.
    """
    name = os.fspath(where)
    end = os.path.splitext(name)[1].lower()
    if os.path.isdir(name):
        listed = in_folder(name, labels is not None and os.fspath(labels) == FOLDERS)
    elif not name or not os.path.lexists(name):
        raise SettingError("images", name, "a folder, an image, an image list (.txt) or a CSV that exists")
    elif end in (".txt", ".csv"):
        if labels is not None:
            raise SettingError("labels", os.fspath(labels), f"none: {name} has its own")
        base = os.path.dirname(name) if root is None else os.fspath(root)
        listed = (from_csv if end == ".csv" else from_list)(name, base)
        _some_exist(name, base, listed)
        return ImageFiles(listed.paths, listed.labels)
    else:
        listed = Listed([name], [-1])
    if root is not None:
        raise SettingError("root", os.fspath(root), f"none: {name} is no list")
    if not listed.paths:
        ends = ", ".join(sorted(extensions()))
        allowed = f"a folder with images: files, not hidden, that end in {ends}"
        raise SettingError("images", name, allowed)
    if labels is not None and os.fspath(labels) != FOLDERS:
        listed.labels = _labels_of(os.fspath(labels), name, listed.paths)
    elif labels is not None and not os.path.isdir(name):
        raise SettingError("labels", FOLDERS, f"a CSV, or none: {name} is no folder")
    return ImageFiles(listed.paths, listed.labels, classes=listed.classes)


def _some_exist(name: str, base: str, listed: Listed) -> None:
    if not listed.paths:
        raise SettingError("images", name, "a list with at least one image")
    if not any(map(os.path.exists, listed.paths)):
        allowed = (
            f"a list of files that exist: none of them is in {base or '.'!r}, such as {listed.paths[0]!r}"
        )
        raise SettingError("images", name, allowed)


def _labels_of(csv: str, where: str, paths: Sequence[str]) -> list[int]:
    """Of a CSV whose paths begin at its own folder, or at that of the images."""
    if not os.path.isfile(csv):
        raise SettingError("labels", csv, f"{FOLDERS}, or a CSV that exists")
    known: dict[str, int] = {}
    for base in (where if os.path.isdir(where) else os.path.dirname(where), os.path.dirname(csv)):
        listed = from_csv(csv, base, "labels")
        known.update(_class_of_each(listed.paths, listed.labels))
    found = [known.get(os.path.abspath(path)) for path in paths]
    lacking = [path for path, label in zip(paths, found, strict=True) if label is None]
    if lacking:
        allowed = f"a CSV with a label for each image; {len(lacking)} of {len(paths)} have none, such as {lacking[0]!r}"
        raise SettingError("labels", csv, allowed)
    return [label for label in found if label is not None]


def _class_of_each(paths: Sequence[str], labels: Sequence[int]) -> dict[str, int]:
    known: dict[str, int] = {}
    for path, label in zip(paths, labels, strict=True):
        first = known.setdefault(os.path.abspath(path), label)
        if first != label:
            raise SettingError("labels", label, f"one class for each image; {path!r} has {first}, too")
    return known


def check_listed(files: ImageFiles) -> None:
    """See to it that the files of a list are there, and that none is of two classes; none is opened.

    Raises:
        SettingError: one is not, or is.
    """
    lacking = [path for path in files.paths if not os.path.exists(path)]
    if lacking:
        allowed = f"files that exist; {len(lacking)} of {len(files)} do not"
        raise SettingError("images", lacking[0], allowed)
    _class_of_each(files.paths, files.labels)


class _Checked(data.Dataset[str]):
    """Of each image what is the matter with it; empty where nothing is."""

    def __init__(self, files: ImageFiles) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> str:
        try:
            self._files[index]
        except ImageError as error:
            return error.why
        return ""


def find_broken(files: ImageFiles, workers: int = 0, progress: bool | None = None) -> list[tuple[str, str]]:
    """The images that cannot be read, or that their transform cannot take: path and reason of each.

    Args:
        files: all of them are read once.
        workers: processes that read; 0 is this one.
        progress: True or False shows or hides a bar, None shows it in a terminal.
    """
    loader = data.DataLoader(
        _Checked(files),
        batch_size=_BATCH,
        num_workers=min(workers, len(files)),
        collate_fn=list,
        generator=torch.Generator(),  # without drawing on the global random state
    )
    reasons = [why for batch in watched(loader, progress, "Check images") for why in batch]
    return [(path, why) for path, why in zip(files.paths, reasons, strict=True) if why]

"""Folders of images, image lists and CSVs as a dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from ..errors import ImageError, SettingError
from ..features.loading import progress_over
from .decoding import read_image
from .listing import class_folders, list_folder, read_csv, read_list

Path = str | os.PathLike[str]
FOLDERS = "folders"
"""Value of ``labels``: each class in a folder of its own."""


class ImageFiles(data.Dataset[tuple[Tensor, int]]):
    """Dataset of image files that yields ``(image, label)``, the image a float tensor (3, H, W).

    >>> files = ImageFiles(["images/a.png"], [3])
    >>> len(files), files.labels
    (1, [3])

    Args:
        paths: Image files.
        labels: Their labels (default: all −1, unlabelled).
        transform: Function from a PIL image in RGB to a float tensor (default: pixels between 0 and 1).
        classes: Names of the classes 0, 1, …, such as those of the class folders.

    Raises:
        SettingError: Other numbers of labels and paths.
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
            raise SettingError("labels", len(self.labels), f"one for each of {len(self.paths)} images")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its label.

        Raises:
            ImageError: The image cannot be read, or the transform fails on it.
        """
        path = self.paths[index]
        return apply_transform(read_image(path), self.transform, path), self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """Return the images of a batch; PyTorch's loader calls this.

        Raises:
            ImageError: As for one image, or one has another shape than the first.
        """
        found = [self[index] for index in indices]
        for (image, _), index in zip(found, indices, strict=True):
            if isinstance(image, Tensor) and image.shape != found[0][0].shape:
                shapes = " and ".join(" × ".join(map(str, one.shape)) for one in (image, found[0][0]))
                why = f"images of different sizes in a batch, {shapes}; expected a transform that gives one size"
                raise ImageError(self.paths[index], why)
        return found

    def with_transform(self, transform: Callable[[Any], Tensor] | None) -> ImageFiles:
        """Return the same files with another transform."""
        return ImageFiles(self.paths, self.labels, transform, self.classes)

    def without(self, paths: Iterable[str]) -> ImageFiles:
        """Return the dataset without some files."""
        left_out = set(paths)
        kept = [index for index, path in enumerate(self.paths) if path not in left_out]
        labels = [self.labels[index] for index in kept]
        return ImageFiles([self.paths[index] for index in kept], labels, self.transform, self.classes)


def apply_transform(image: Any, transform: Callable[[Any], Tensor] | None, path: str) -> Tensor:
    """Return ``transform(image)`` of a PIL image (default: its pixels between 0 and 1); errors name the file."""
    if transform is None:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    try:
        return transform(image)
    except Exception as error:  # anyone's code
        raise ImageError(path, f"its transform failed ({type(error).__name__}: {error})") from error


def find_images(where: Path, labels: Path | None = None, root: Path | None = None) -> ImageFiles:
    """Return the images in a folder or a list.

    Args:
        where: An image, a folder with all folders in it, an image list of OpenOOD's (.txt, a path and a label in each
            line), or a CSV with the columns path and, perhaps, label. A folder is sorted by name, with numbers as numbers.
            Hidden files and ``__MACOSX`` are left out. Links are followed, but not back to a parent.
        labels: For a folder: ``folders`` (each folder in it is a class; sorted as torchvision's ``ImageFolder`` sorts them
            they are 0, 1, …) or a CSV with a path and a label for each image (default: unlabelled, −1).
        root: Folder that a list's paths are relative to (default: the list's own).

    Raises:
        SettingError: No images, a label that is missing or not a whole number, or something that cannot be read.
    """
    name = os.fspath(where)
    if not name or not os.path.lexists(name):
        raise SettingError("images", name, "a folder, an image, an image list (.txt) or a CSV that exists")
    end = os.path.splitext(name)[1].lower()
    if end in (".txt", ".csv") and not os.path.isdir(name):
        if labels is not None:
            raise SettingError("labels", os.fspath(labels), f"none: {name} has its own")
        return _listed_images(name, os.path.dirname(name) if root is None else os.fspath(root))
    if root is not None:
        raise SettingError("root", os.fspath(root), f"none: {name} is not a list")
    paths = list_folder(name) if os.path.isdir(name) else [name]
    if not paths:
        allowed = "a folder with images: files, not hidden, that end in .jpg, .png, .webp or another suffix of Pillow's"
        raise SettingError("images", name, allowed)
    if labels is None:
        return ImageFiles(paths)
    if os.fspath(labels) != FOLDERS:
        return ImageFiles(paths, _labels_of(os.fspath(labels), name, paths))
    # Empty ones as well: a class without images must not shift the others.
    classes = class_folders(name) if os.path.isdir(name) else []
    if not classes:
        raise SettingError("labels", FOLDERS, f"a folder for each class, or a CSV; {name} has none")
    numbers = {folder: number for number, folder in enumerate(classes)}
    folders = [path[len(name) :].lstrip(os.sep).split(os.sep)[0] for path in paths]
    if stray := [path for path, folder in zip(paths, folders, strict=True) if folder not in numbers]:
        raise SettingError("labels", FOLDERS, f"each image in a folder of its class; {stray[0]!r} is not")
    return ImageFiles(paths, [numbers[folder] for folder in folders], classes=classes)


def _listed_images(name: str, base: str) -> ImageFiles:
    paths, labels = (read_csv if name.lower().endswith(".csv") else read_list)(name, base)
    if not paths:
        raise SettingError("images", name, "a list with at least one image")
    if not any(map(os.path.exists, paths)):
        allowed = f"a list of files that exist: none of them is in {base or '.'!r}, such as {paths[0]!r}"
        raise SettingError("images", name, allowed)
    return ImageFiles(paths, labels)


def _labels_of(csv: str, where: str, paths: Sequence[str]) -> list[int]:
    """Return the labels in a CSV whose paths are relative to its own folder, or to that of the images."""
    if not os.path.isfile(csv):
        raise SettingError("labels", csv, f"{FOLDERS}, or a CSV that exists")
    known: dict[str, int] = {}
    for base in (where if os.path.isdir(where) else os.path.dirname(where), os.path.dirname(csv)):
        known.update(_label_by_path(*read_csv(csv, base, "labels")))
    missing = [path for path in paths if os.path.abspath(path) not in known]
    if missing:
        allowed = f"a CSV with a label for each image; {len(missing)} of {len(paths)} have none, such as {missing[0]!r}"
        raise SettingError("labels", csv, allowed)
    return [known[os.path.abspath(path)] for path in paths]


def _label_by_path(paths: Sequence[str], labels: Sequence[int]) -> dict[str, int]:
    known: dict[str, int] = {}
    for path, label in zip(paths, labels, strict=True):
        first = known.setdefault(os.path.abspath(path), label)
        if first != label:
            raise SettingError("labels", label, f"one class for each image; {path!r} has {first}, too")
    return known


def check_listed(files: ImageFiles) -> None:
    """Check that the files of a list exist and have one label each; none is opened."""
    missing = [path for path in files.paths if not os.path.exists(path)]
    if missing:
        raise SettingError("images", missing[0], f"files that exist; {len(missing)} of {len(files)} do not")
    _label_by_path(files.paths, files.labels)


class _Reasons(data.Dataset[str]):
    """Dataset of the reasons why images cannot be read, empty for those that can."""

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
    """Return path and reason of each image that cannot be read or transformed; all are read once."""
    generator = torch.Generator()  # so that the global random state is not drawn on
    workers = min(workers, len(files))
    loader = data.DataLoader(_Reasons(files), 32, num_workers=workers, collate_fn=list, generator=generator)
    reasons = [why for batch in progress_over(loader, progress, "Check images") for why in batch]
    return [(path, why) for path, why in zip(files.paths, reasons, strict=True) if why]

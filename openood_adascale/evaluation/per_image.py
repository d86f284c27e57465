"""Files, labels and predictions of the scored images of a set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch.utils import data

from ..data.files import ImageFiles

_KNOWN = {
    "torchvision.datasets.folder.DatasetFolder": ("__getitem__", "__len__"),
    "openood.datasets.imglist_dataset.ImglistDataset": ("__getitem__", "__len__", "getitem"),
}
"""Datasets whose files are known, and the methods that a subclass must leave alone."""


@dataclass(frozen=True)
class PerImage:
    """N images of a set, in the order of its scores.

    >>> images = evaluate(AdaSCALE(network), benchmark, progress=False).images["textures"]
    >>> len(images), images.predictions.shape, images.percentiles.shape
    (20, (20,), (20,))
    """

    labels: np.ndarray
    """(N,) int64, −1 for unlabelled."""
    predictions: np.ndarray
    """(N,) int64 classes that the network, or a postprocessor, predicts (−1 if unknown)."""
    paths: Sequence[str] = ()
    """Their files (empty unless it is certain which score belongs to which file; see ``files_of``)."""
    percentiles: np.ndarray | None = None
    """(N,) float64 adaptive percentiles p in percent, for methods that have them (AdaSCALE)."""
    oodness: np.ndarray | None = None
    """(N,) float64 Q', for methods that have it (AdaSCALE)."""

    def __len__(self) -> int:
        return len(self.labels)


def images_of(loader: Iterable[Any], labels: np.ndarray, predictions: np.ndarray) -> PerImage:
    """Return the images that a loader has yielded, with these (N,) labels and predictions."""
    paths = files_of(loader)
    return PerImage(labels, predictions, paths if len(paths) == len(labels) else ())


def joined(parts: Sequence[PerImage]) -> PerImage:
    """Return several loaders' images as one set, without paths, percentiles or Q' if one of them has none."""

    def column(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else np.concatenate(values)

    paths = tuple(path for part in parts for path in part.paths) if all(part.paths for part in parts) else ()
    return PerImage(column("labels"), column("predictions"), paths, column("percentiles"), column("oodness"))


def as_classes(values: object, count: int) -> np.ndarray:
    """Return labels or predictions as (N,) int64, all −1 if they are not N whole numbers."""
    try:
        array = np.asarray(values)
        if array.shape == (count,) and array.dtype.kind in "iub":
            return array.astype(np.int64)
    except Exception:  # a tensor on another device, for example
        pass
    return np.full(count, -1, np.int64)


# Datasets.


def files_of(loader: Any) -> tuple[str, ...]:
    """Return the files of a loader's images in its order (empty if they are unknown).

    Known are PyTorch's ``DataLoader``, not shuffled and without a ``collate_fn``, over this package's ``ImageFiles``,
    torchvision's image folders, OpenOOD's image lists, ``Subset`` and ``ConcatDataset`` of these, and any dataset with an
    attribute ``paths``.
    """
    if type(loader) is not data.DataLoader or loader.collate_fn is not data.default_collate:
        return ()
    # Not loader.sampler: with a batch_sampler that is one that is not used.
    dataset, batches = cast(Any, loader.dataset), cast(Any, loader.batch_sampler)
    sampler: Any = batches.sampler if type(batches) is data.BatchSampler else None
    if type(sampler) is not data.SequentialSampler or len(sampler) != len(dataset):
        return ()
    if loader.num_workers and not getattr(loader, "in_order", True):
        return ()
    try:
        paths = _paths(dataset) or []
    except Exception:  # an attribute of anyone's dataset can be anything
        return ()
    dropped = len(paths) % batches.batch_size if batches.drop_last else 0
    return tuple(paths[: len(paths) - dropped]) if len(paths) == len(dataset) else ()


def _paths(dataset: Any) -> list[str] | None:
    """Return a path for each index (None if they are unknown)."""
    if type(dataset) is data.Subset:
        inner = _paths(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    if type(dataset) is data.ConcatDataset:
        parts = [_paths(part) for part in dataset.datasets]
        return None if None in parts else [path for part in parts if part is not None for path in part]
    own = getattr(dataset, "paths", None)
    if isinstance(own, Sequence) and not isinstance(own, str | bytes):
        return [os.fsdecode(os.fspath(path)) for path in own]
    for kind in type(dataset).__mro__:
        methods = _KNOWN.get(name := f"{kind.__module__}.{kind.__qualname__}", ())
        if methods and all(getattr(type(dataset), own) is getattr(kind, own) for own in methods):
            return (
                _list_paths(dataset) if name.startswith("openood.") else [path for path, _ in dataset.samples]
            )
    return None


def _list_paths(dataset: Any) -> list[str] | None:
    """Return the files of OpenOOD's image list (None if it replaces broken images by others)."""
    names = [line.split(" ", 1)[0].strip() for line in dataset.imglist[: len(dataset)]]
    return None if dataset.skip_broken else [os.path.join(dataset.data_dir, name) for name in names]


def classes_of(dataset: Any) -> tuple[str, ...]:
    """Return a dataset's names of the classes 0, 1, … (empty if it has none)."""
    if type(dataset) is data.Subset:
        return classes_of(dataset.dataset)
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def folder_classes(dataset: Any) -> tuple[str, ...]:
    """Return the class folders whose numbers are a dataset's labels (empty for other datasets).

    Known are this package's ``ImageFiles``, torchvision's ``ImageFolder`` without a target transform, and ``Subset`` and
    ``ConcatDataset`` of these.
    """
    if type(dataset) is data.Subset:
        return folder_classes(dataset.dataset)
    if type(dataset) is data.ConcatDataset:
        found = {folder_classes(part) for part in dataset.datasets}
        return found.pop() if len(found) == 1 else ()
    # Subclasses of ImageFolder such as ImageNet may number classes on their own.
    name = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    plain = name == "torchvision.datasets.folder.ImageFolder" and dataset.target_transform is None
    return classes_of(dataset) if plain or isinstance(dataset, ImageFiles) else ()

"""Files, labels and predictions of the images of a set, beside their scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch.utils import data

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
    """Their files (empty unless it is certain which score belongs to which file)."""
    reason: str = ""
    """Reason why there are no paths."""
    percentiles: np.ndarray | None = None
    """(N,) float64 adaptive percentiles p in percent, for methods that have them (AdaSCALE)."""
    oodness: np.ndarray | None = None
    """(N,) float64 Q', for methods that have it (AdaSCALE)."""

    def __len__(self) -> int:
        return len(self.labels)


def joined(parts: Sequence[PerImage]) -> PerImage:
    """Return several loaders' images as one set, without paths if one of them has none."""
    if len(parts) == 1:
        return parts[0]
    reason = next((part.reason or "one of its loaders has no files" for part in parts if not part.paths), "")
    return PerImage(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.predictions for part in parts]),
        () if reason else tuple(path for part in parts for path in part.paths),
        reason,
    )


def as_classes(values: object, count: int) -> np.ndarray:
    """Return labels or predictions as (N,) int64, all −1 if they are not N whole numbers."""
    try:
        array = np.asarray(values)
    except Exception:  # a tensor on another device, for example
        return np.full(count, -1, np.int64)
    if array.shape != (count,) or array.dtype.kind not in "iub":
        return np.full(count, -1, np.int64)
    return array.astype(np.int64)


# Datasets.


def files_of(loader: Any) -> tuple[tuple[str, ...], str]:
    """Return the files of a loader's images in its order, or none and the reason.

    Known are PyTorch's ``DataLoader``, not shuffled, over this package's ``ImageFiles``, torchvision's image folders,
    OpenOOD's image lists, ``Subset`` and ``ConcatDataset`` of these, and any dataset with an attribute ``paths``.
    """
    if type(loader) is not data.DataLoader:
        return (), f"it is a {type(loader).__name__}, whose order is unknown"
    # Not loader.sampler: with a batch_sampler that is one that is not used.
    dataset, batches = cast(Any, loader.dataset), cast(Any, loader.batch_sampler)
    sampler: Any = batches.sampler if type(batches) is data.BatchSampler else None
    if type(sampler) is data.RandomSampler:
        return (), "its loader is shuffled"
    if type(sampler) is not data.SequentialSampler or len(sampler) != len(dataset):
        return (), "its loader has a sampler of its own"
    if loader.num_workers and not getattr(loader, "in_order", True):
        return (), "its loader yields batches in any order (in_order=False)"
    if loader.collate_fn is not data.default_collate:
        return (), "its loader has a collate_fn of its own"
    try:
        paths = _paths(dataset)
    except Exception:  # an attribute of anyone's dataset can be anything
        paths = None
    if paths is None or len(paths) != len(dataset):
        return (), "its dataset has no attribute paths with one path for each image"
    dropped = len(paths) % batches.batch_size if batches.drop_last else 0
    return tuple(paths[: len(paths) - dropped]), ""


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
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(dataset).__mro__}
    if "torchvision.datasets.folder.ImageFolder" in kinds:
        # Subclasses such as ImageNet may number classes on their own.
        plain = (
            type(dataset).__qualname__ == "ImageFolder" and getattr(dataset, "target_transform", None) is None
        )
        return classes_of(dataset) if plain else ()
    return classes_of(dataset) if "openood_adascale.data.files.ImageFiles" in kinds else ()


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
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in _KNOWN:
            if any(getattr(type(dataset), own) is not getattr(kind, own) for own in _KNOWN[name]):
                return None
            return (
                _list_paths(dataset) if name.startswith("openood.") else [path for path, _ in dataset.samples]
            )
    return None


def _list_paths(dataset: Any) -> list[str] | None:
    """Return the files of OpenOOD's image list (None if it replaces broken images by others)."""
    if dataset.skip_broken:
        return None
    names = [line.split(" ", 1)[0].strip() for line in dataset.imglist[: len(dataset)]]
    return [os.path.join(dataset.data_dir, name) for name in names]

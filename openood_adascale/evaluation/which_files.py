"""Which files a loader's images come from, in its order; only where that is certain."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

from torch.utils import data

SHUFFLED = "its loader is shuffled"
NO_FILES = "its data set tells no files (by an attribute paths, one for each image)"
_KNOWN = {
    "torchvision.datasets.folder.DatasetFolder": ("__getitem__", "__len__"),
    "openood.datasets.imglist_dataset.ImglistDataset": ("__getitem__", "__len__", "getitem"),
}
"""Data sets of which it is known where they keep their files; and what a subclass must leave as it is."""


def files_of(loader: Any) -> tuple[tuple[str, ...], str]:
    """The files of all of a loader's images, in the order in which it yields them; or none, and why.

    It is known of PyTorch's ``DataLoader``, not shuffled, over this package's ``ImageFiles``, torchvision's image folders
    and OpenOOD's image lists, ``Subset`` and ``ConcatDataset`` of these, and any data set with an attribute ``paths``: a
    path for each index.
    """
    if type(loader) is not data.DataLoader:
        return (), f"it is a {type(loader).__name__}, whose order is not known"
    # Not loader.sampler: beside a batch_sampler of the user's, that is one that is not used.
    dataset, batches = cast(Any, loader.dataset), cast(Any, loader.batch_sampler)
    sampler: Any = batches.sampler if type(batches) is data.BatchSampler else None
    if type(sampler) is data.RandomSampler:
        return (), SHUFFLED
    if type(sampler) is not data.SequentialSampler or len(sampler) != len(dataset):
        return (), "its loader has a sampler of its own"
    if loader.num_workers and not getattr(loader, "in_order", True):
        return (), "its loader yields batches as they come (in_order=False)"
    if loader.collate_fn is not data.default_collate:
        return (), "its loader makes batches in a way of its own (collate_fn)"
    try:
        paths = _paths(dataset)
    except Exception:  # of anyone's data set, an attribute can be anything
        paths = None
    if paths is None or len(paths) != len(dataset):
        return (), NO_FILES
    dropped = len(paths) % batches.batch_size if batches.drop_last else 0
    return tuple(paths[: len(paths) - dropped]), ""


def classes_of(dataset: Any) -> tuple[str, ...]:
    """What a data set calls its classes 0, 1, …, as torchvision's and this package's do; empty where it does not."""
    if type(dataset) is data.Subset:
        return classes_of(dataset.dataset)
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _paths(dataset: Any) -> list[str] | None:
    """A path for each index; None where they are not told."""
    if type(dataset) is data.Subset:
        inner = _paths(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    if type(dataset) is data.ConcatDataset:
        parts = [_paths(part) for part in dataset.datasets]
        return None if None in parts else [path for part in parts if part is not None for path in part]
    told = getattr(dataset, "paths", None)
    if isinstance(told, Sequence) and not isinstance(told, str | bytes):
        return [os.fsdecode(os.fspath(path)) for path in told]
    for kind in type(dataset).__mro__:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in _KNOWN:
            if any(getattr(type(dataset), own) is not getattr(kind, own) for own in _KNOWN[name]):
                return None
            return (
                _of_a_list(dataset) if name.startswith("openood.") else [path for path, _ in dataset.samples]
            )
    return None


def _of_a_list(dataset: Any) -> list[str] | None:
    """Of OpenOOD's; one that puts other images in place of broken ones does not tell which."""
    if dataset.skip_broken:
        return None
    names = [line.split(" ", 1)[0].strip() for line in dataset.imglist[: len(dataset)]]
    return [os.path.join(dataset.data_dir, name) for name in names]

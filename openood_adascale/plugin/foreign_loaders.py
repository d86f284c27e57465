"""A benchmark's loaders as OpenOOD's ``get_id_ood_dataloader`` gives them. Imports no OpenOOD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import data

from ..errors import SettingError
from ..evaluation.benchmark import Benchmark
from ..evaluation.folders import ImageFiles
from ..evidence.batch import unpack
from ..evidence.dataset import some_images
from .own_images import OwnImages

OPTIONS = {"train": "--train", "val": "--val", "ood val": "--ood-val"}


class Asked(dict[str, Any]):
    """Loaders by what they are for; of one that is not to be had, an error that says so, when it is asked for.

    Args:
        content: the loaders.
        prefix: of their names in errors.
        unlabelled: names of those whose labels lack, and are needed.
    """

    def __init__(self, content: Mapping[str, Any], prefix: str = "", unlabelled: Iterable[str] = ()) -> None:
        super().__init__(content)
        self._prefix, self._unlabelled = prefix, frozenset(unlabelled)

    def __getitem__(self, key: str) -> Any:
        if key in self._unlabelled:
            raise no_labels(key)
        return super().__getitem__(key)

    def __missing__(self, key: str) -> Any:
        raise no_images(self._prefix + key)


def no_images(name: str) -> SettingError:
    """Images that a method needs are not there."""
    return SettingError(OPTIONS.get(name, name), None, f"{name} images, which this method needs")


def no_labels(name: str) -> SettingError:
    """Their labels are not."""
    allowed = f"the class of each {name} image, which this method needs (a folder for each class and --labels folders)"
    return SettingError(f"{OPTIONS.get(name, name)}: labels", None, allowed)


def has_labels(loader: Any) -> bool:
    """Whether a loader's images have classes, as far as shows: image files say it, of others it is believed."""
    dataset = getattr(loader, "dataset", None)
    return not isinstance(dataset, ImageFiles) or min(dataset.labels, default=0) >= 0


def first_images(loader: Any) -> Tensor:
    """Some images of a loader."""
    dataset = getattr(loader, "dataset", None)
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return some_images(dataset)
    return unpack(next(iter(loader)))[0]


def tree_of(benchmark: Benchmark, unlabelled: Iterable[str]) -> dict[str, Any]:
    """All loaders, laid out as OpenOOD's.

    Args:
        unlabelled: which of ``train`` and ``val`` lack labels that are needed.
    """
    known = {name: loader for name, loader in benchmark.known.items() if loader is not None}
    ood = {name: loader for name, loader in benchmark.ood.items() if loader is not None}
    return {
        "id": Asked({name: _openoods(name, loader) for name, loader in known.items()}, "", unlabelled),
        "csid": {name: _openoods(name, loader) for name, loader in benchmark.covariate_shift.items()},
        "ood": Asked({name: _openoods(name, loader) for name, loader in ood.items()}, "ood "),
    }


def paths_of(benchmark: Benchmark) -> dict[int, tuple[str, ...]]:
    """By a loader's identity, where its like is in :func:`tree_of`."""
    found: dict[int, tuple[str, ...]] = {}
    for split in ("near", "far"):
        found.update({id(loader): ("ood", split, name) for name, loader in benchmark.ood[split].items()})
    found.update({id(loader): ("csid", name) for name, loader in benchmark.covariate_shift.items()})
    found[id(benchmark.ood_val)] = ("ood", "val")
    found.update({id(loader): ("id", name) for name, loader in benchmark.known.items()})
    return found


def _openoods(name: str, loader: Any) -> Any:
    if isinstance(loader, Mapping):
        return {key: _openoods(key, one) for key, one in loader.items()}
    dataset: Any = getattr(loader, "dataset", None)
    if type(loader) is data.DataLoader and type(dataset) is ImageFiles and loader.batch_size is not None:
        transform: Any = dataset.transform  # None, too, is as it is there
        return data.DataLoader(
            OwnImages(name, dataset, transform),  # its images count as those of ImageFiles
            batch_size=loader.batch_size,
            sampler=loader.sampler,
            drop_last=loader.drop_last,
            num_workers=loader.num_workers,
            generator=loader.generator,
        )
    if hasattr(dataset, "__getitem__") and len(dataset) and isinstance(dataset[0], Mapping):
        return loader
    return _Dicts(loader)


class _Dicts:
    """A loader whose batches are as OpenOOD's are."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self._loader:
            images, labels = unpack(batch)
            if len(images):
                yield {"data": images, "data_aux": images, "label": torch.from_numpy(labels)}

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

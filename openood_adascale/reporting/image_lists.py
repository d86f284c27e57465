"""OpenOOD's image lists: which files the scores of a run are of, where that is certain.

Saved scores are in the loader's order and tell no files. The lists tell files in their order, which is that of
``eval_ood.py``'s loaders; ``eval_ood_imagenet.py`` shuffles. The labels that were saved of the known images show which it
was.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ..errors import ResultError
from .names import DATASETS

FOLDER = "benchmark_imglist"
NEEDED = f"OpenOOD's image lists and images (--data-root DIR, the folder with {FOLDER})"
SHUFFLED = (
    "the scores are in another order than the image lists, as eval_ood_imagenet.py's loaders shuffle (eval_ood.py and "
    "openood-adascale evaluate keep the order)"
)
FilesOf = Callable[[str, np.ndarray], tuple[tuple[str, ...], str]]
"""Takes a set's name and the labels that were saved, (N,); gives its files, or none and why."""
_CERTAIN = 6  # a random order has the labels of the list in less than one of 10 ** this cases


class Listed(NamedTuple):
    """What a list says."""

    names: list[str]
    labels: np.ndarray
    """(N,) int64, as OpenOOD reads them."""
    changed: float
    """When, in seconds."""


class ImageLists:
    """The lists below a data folder of OpenOOD's.

    Args:
        root: the folder, with ``benchmark_imglist`` and the images.

    Raises:
        ResultError: there are no lists.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not os.path.isdir(self.root / FOLDER):
            raise ResultError(f"data root: {root} has no folder {FOLDER}; expected OpenOOD's data folder")
        self._read: dict[Path, Listed | None] = {}
        self._paths: dict[tuple[Path, Path], tuple[str, ...]] = {}

    @classmethod
    def beside(cls, folder: str | Path) -> ImageLists | None:
        """Those of the checkout in whose ``results`` a run's folder lies; None where there are none."""
        for path in dict.fromkeys((Path(os.path.abspath(folder)), Path(os.path.realpath(folder)))):
            for parent in path.parents:
                if parent.name == "results" and os.path.isdir(parent.parent / "data" / FOLDER):
                    return cls(parent.parent / "data")
        return None

    def of_run(
        self, dataset: str | None, labels: np.ndarray, scored: float
    ) -> tuple[FilesOf, dict[int, str]]:
        """The files of a run's scores by set, and the classes' names where the known images' folders tell them.

        Args:
            dataset: the known images'; None looks for the one whose list has these labels.
            labels: (N,) that were saved of the known test images.
            scored: when the scores were saved; a list that was changed later may be another.
        """
        names = [dataset] if dataset else sorted(path.name for path in (self.root / FOLDER).glob("*"))
        found = {name: self._list(self._test_list(name)) for name in names}
        same = [name for name, listed in found.items() if listed and np.array_equal(listed.labels, labels)]
        if len(same) != 1:
            why = self._why_none(dataset, found, labels, same)
            return lambda *_: ((), why), {}
        (dataset,) = same
        if not _tells_order(labels):
            why = (
                "the labels of the known images do not tell whether the scores are in the image lists' order"
            )
            return lambda *_: ((), why), {}
        listed = self._list(self._test_list(dataset))
        return self._files_of(dataset, scored), _classes(listed) if listed else {}

    def _why_none(
        self, dataset: str | None, found: dict[str, Listed | None], labels: np.ndarray, same: list[str]
    ) -> str:
        if same:
            return (
                f"the image lists of {' and '.join(same)} both fit; the run's folder does not say which it is"
            )
        lists = [listed for listed in found.values() if listed]
        if any(Counter(listed.labels.tolist()) == Counter(labels.tolist()) for listed in lists):
            return SHUFFLED
        if dataset is None:
            return f"none of the image lists in {self.root / FOLDER} has the labels of the known images"
        if not lists:
            return f"{self._test_list(dataset)} is needed, which cannot be read"
        (listed,) = lists
        if len(listed.names) != len(labels):
            what = f"it lists {len(listed.names)} images, and the scores are of {len(labels)}"
        else:
            what = "its labels are others"
        return f"{self._test_list(dataset)} is not the list that was scored: {what}"

    def _files_of(self, dataset: str, scored: float) -> FilesOf:
        def files(name: str, labels: np.ndarray) -> tuple[tuple[str, ...], str]:
            path = self._test_list(dataset) if name == "id" else self._set_list(dataset, name)
            listed = self._list(path)
            if listed is None:
                return (), f"{path} is needed, which cannot be read"
            if len(listed.names) != len(labels):
                why = f"it lists {len(listed.names)} images, and the scores are of {len(labels)}"
            elif not np.array_equal(listed.labels, labels):
                why = "its labels are others, or in another order"
            elif listed.changed > scored:
                why = "it was changed after the scores were saved (if it is the same, touch the file of the scores)"
            elif any(map(_leads_out, listed.names)):
                why = "it names files outside its folder"
            elif (store := self._store(dataset, name, listed.names[0])) is None:
                return (
                    (),
                    f"the images of {path} are needed, such as {listed.names[0]}, which are not in {self.root}",
                )
            else:
                return self._paths_in(path, store, listed.names), ""
            return (), f"{path} is not the list that was scored: {why}"

        return files

    def _test_list(self, dataset: str) -> Path:
        return self.root / FOLDER / dataset / f"test_{dataset}.txt"

    def _set_list(self, dataset: str, name: str) -> Path:
        """ImageNet-200's covariate-shifted sets are named after it: imagenet_v2 is test_imagenet200_v2.txt."""
        safe = name if re.fullmatch(r"[\w.-]+", name) else "unknown"
        own = self.root / FOLDER / dataset / f"test_{dataset}_{safe.removeprefix('imagenet_')}.txt"
        return (
            own if safe.startswith("imagenet_") and os.path.isfile(own) else own.with_name(f"test_{safe}.txt")
        )

    def _store(self, dataset: str, name: str, first: str) -> Path | None:
        """The folder in which the listed images lie; None where that is in none, or in several that OpenOOD does not
        use for this set."""
        usual = "images_classic" if "cifar" in dataset or name == "textures" else "images_largescale"
        there = [path for path in self.root.glob("images_*") if os.path.exists(path / first)]
        if dataset in DATASETS and self.root / usual in there:
            return self.root / usual
        return there[0] if len(there) == 1 else None

    def _paths_in(self, path: Path, store: Path, names: list[str]) -> tuple[str, ...]:
        if (path, store) not in self._paths:
            self._paths[path, store] = tuple(os.path.join(store, name) for name in names)
        return self._paths[path, store]

    def _list(self, path: Path) -> Listed | None:
        if path not in self._read:
            self._read[path] = _read(path)
        return self._read[path]


def _read(path: Path) -> Listed | None:
    """None for a file that is no list, or that OpenOOD itself would stumble over."""
    try:
        if not path.is_file():
            return None
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.strip("\n").split(" ", 1) for line in file]
        changed = path.stat().st_mtime
    except OSError:
        return None
    if not lines or any(len(line) < 2 or not line[0] for line in lines):
        return None
    # Where a line has something else than a number, OpenOOD takes 0.
    labels = [int(extra) if re.fullmatch(r"\s*[+-]?\d{1,9}\s*", extra) else 0 for _, extra in lines]
    return Listed([name for name, _ in lines], np.array(labels, np.int64), changed)


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name)
    return os.path.isabs(name) or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name


def _tells_order(labels: np.ndarray) -> bool:
    """Whether it is next to impossible that images in a random order have their labels in this one."""
    counts = Counter(labels.tolist()).values()
    orders = math.lgamma(len(labels) + 1) - sum(math.lgamma(count + 1) for count in counts)
    return orders > _CERTAIN * math.log(10)


def _classes(listed: Listed) -> dict[int, str]:
    """Each class's folder, if each has one of its own."""
    folders: dict[int, set[str]] = {}
    for name, label in zip(listed.names, listed.labels.tolist(), strict=True):
        folders.setdefault(label, set()).add(PurePosixPath(name).parent.name)
    names = {label: next(iter(found)) for label, found in folders.items() if len(found) == 1}
    return names if len({*names.values()}) == len(folders) > 1 and all(names.values()) else {}

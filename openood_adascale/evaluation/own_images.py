"""OpenOOD's protocol for any network and any folders of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch.utils.data import DataLoader

from ..detectors.registry import METHODS
from ..errors import SettingError
from .benchmark import Benchmark
from .evaluate import Result, evaluate
from .folders import ImageFiles, find_broken, find_images
from .networks import Loaded, load_network
from .one_pass import AnyDetector


def evaluate_folders(chosen: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Result]:
    """Evaluate methods on folders of images.

    Args:
        chosen: as the options of ``openood-adascale evaluate`` by their names; those left out are None.
        say: what is told on the way, and the table at the end.

    Raises:
        SettingError: an option that cannot be used.
        ImageError: an image that cannot be read.
        StoreError: the store cannot be used, or has no room.
    """
    loaded = load_network(chosen["network"], chosen.get("weights"), chosen.get("transform"))
    say(f"{loaded.name}: {loaded.description}")
    device = torch.device(chosen.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
    loaded.network.to(device)
    folders = _Folders(chosen, loaded, say)
    labels = chosen.get("labels")
    benchmark = Benchmark(
        test=folders.loader("id", chosen["id"], labels),
        near={name: folders.loader(name, where) for name, where in chosen["near"].items()},
        far={name: folders.loader(name, where) for name, where in chosen["far"].items()},
        val=folders.optional("val"),
        ood_val=folders.optional("ood_val"),
        train=folders.optional("train"),
    )
    detectors = _detectors(chosen, loaded)
    search = chosen.get("search")
    if search is None and benchmark.ood_val is None:
        say("no --ood-val: the methods' settings are taken as they are, without a search")
        search = False
    results = evaluate(
        detectors,
        benchmark,
        search=search,
        known_accuracy=None if labels else math.nan,
        progress=False if chosen.get("quiet") else None,
        store=chosen.get("store"),
    )
    say(_summary(results))
    return results


class _Folders:
    """Loaders over folders of images, read as the network wants them."""

    def __init__(self, chosen: Mapping[str, Any], loaded: Loaded, say: Callable[[str], None]) -> None:
        self._chosen, self._loaded, self._say = chosen, loaded, say
        self._batch = _count(chosen, "batch_size", 64)
        self._workers = _count(chosen, "workers", 2, least=0)

    def optional(self, name: str) -> DataLoader[Any] | None:
        """Of an option that can be left out."""
        where = self._chosen.get(name)
        return None if where is None else self.loader(name, where)

    def loader(self, name: str, where: str, labels: str | None = None) -> DataLoader[Any]:
        files = find_images(where, labels)
        files = ImageFiles(files.paths, files.labels, self._loaded.transform)
        if self._chosen.get("skip_broken"):
            files = self._without_broken(name, files)
        self._say(f"{name}: {len(files)} images")
        return DataLoader(files, batch_size=self._batch, num_workers=self._workers)

    def _without_broken(self, name: str, files: ImageFiles) -> ImageFiles:
        broken = find_broken(files, self._workers, False if self._chosen.get("quiet") else None)
        for path, why in broken:
            self._say(f"{name}: left out: {path}: {why}")
        if len(broken) == len(files):
            raise SettingError(f"--{name}", self._chosen.get(name), "a folder with images that can be read")
        return files.without(broken)


def _count(chosen: Mapping[str, Any], name: str, default: int, least: int = 1) -> int:
    value = chosen.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingError(f"--{name.replace('_', '-')}", value, f"a whole number from {least} on")
    return value


def _detectors(chosen: Mapping[str, Any], loaded: Loaded) -> dict[str, AnyDetector]:
    named = chosen.get("methods") or "all"
    names = [
        name.strip() for name in (named.split(",") if isinstance(named, str) else named) if str(name).strip()
    ]
    names = [one for name in names for one in (METHODS if name == "all" else [name])]
    detectors: dict[str, AnyDetector] = {}
    for name in dict.fromkeys(names):
        if name not in METHODS:
            raise SettingError("--methods", name, f"all, or some of {', '.join(METHODS)}")
        method = METHODS[name]
        settings = dict(method.defaults)
        if chosen.get("precision") is not None:
            settings["precision"] = chosen["precision"]
        if chosen.get("train") is None and "learn_from" in method.detector.settings_class.names():
            settings["learn_from"] = "val"
        detectors[name] = method.detector(loaded.network, **settings)
    return detectors


def _summary(results: Mapping[str, Result]) -> str:
    rows = {
        METHODS[name].label: {
            f"{split} {column}": result.table[column][f"{split}ood"]
            for split in ("near", "far")
            for column in ("FPR@95", "AUROC")
        }
        for name, result in results.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").to_string(float_format=lambda value: f"{value:.2f}")

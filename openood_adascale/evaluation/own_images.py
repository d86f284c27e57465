"""Evaluation of any network on folders of images: the command ``openood-adascale evaluate``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from ..data.files import FOLDERS, ImageFiles, find_broken, find_images
from ..data.labels import read_class_names, with_classes
from ..detectors.registry import METHODS
from ..errors import SettingError
from ..models.loading import LoadedNetwork, load_network
from ..models.weights import Say
from .benchmark import Benchmark
from .evaluate import AnyMethod, Evaluator
from .one_pass import AnyDetector
from .result import Result


class ImageReader:
    """A network on its device, and loaders of images for it, shared by ``evaluate``, ``fit`` and ``score``.

    Args:
        options: Options of the command by name; None or missing ones have their defaults.
        say: Called with a line for each thing that is loaded, found or left out.
        loaded: The network (default: the one that the options name).
    """

    def __init__(self, options: Mapping[str, Any], say: Say, loaded: LoadedNetwork | None = None) -> None:
        self._say = say
        self.batch_size = _count(options, "batch_size", 64, 1)
        self.workers = _count(options, "workers", 2, 0)
        self.skip_broken = bool(options.get("skip_broken"))
        self.progress = False if options.get("quiet") else None
        """Progress bars: False hides them, None shows them in a terminal."""
        self.names_given = options.get("classes") is not None
        names = list(read_class_names(options["classes"])) if self.names_given else []
        device = chosen_device(options.get("device"))
        self.loaded = loaded or load_network(
            options["network"], options.get("weights"), options.get("transform"), say
        )
        self.loaded.classes = names or self.loaded.classes
        say(f"{self.loaded.name}: {self.loaded.description}")
        self.loaded.network.to(device)
        self._class_count = 0

    def files(self, name: str, where: str, labels: str | None = None) -> ImageFiles:
        """Return the images in a folder or list, with the network's transform."""
        try:
            files = find_images(where, labels).with_transform(self.loaded.transform)
        except SettingError as error:
            raise error.within(f"--{name.replace('_', '-')}") from error
        if not self.skip_broken:
            return files
        broken = find_broken(files, self.workers, self.progress)
        for path, why in broken:
            self._say(f"{name}: left out: {path}: {why}")
        if broken:
            self._say(f"{name}: left out {len(broken)} of {len(files)} images, which cannot be read")
        if len(broken) == len(files):
            raise SettingError(name, where, "images of which at least one can be read")
        return files.without(path for path, _ in broken)

    def class_count(self, files: ImageFiles) -> int:
        """Return C, the number of classes of the network; the first image is run once."""
        if not self._class_count:
            self._class_count = self.loaded.class_count(files[0][0])
        return self._class_count

    def check_class_names(self, files: ImageFiles) -> None:
        """Check that there are as many names in ``--classes`` as classes."""
        names = self.loaded.classes
        if self.names_given and len(names) != (count := self.class_count(files)):
            allowed = f"{count} names, one for each of the network's {count} classes"
            raise SettingError("--classes", len(names), allowed)

    def with_classes(self, name: str, files: ImageFiles, places: Sequence[str | None] = ()) -> ImageFiles:
        """Return images with labels that are the network's classes.

        If the classes have no names, the class folders of one of ``places`` name them.
        """
        count, names = self.class_count(files), self.loaded.classes
        if files.classes and not names:
            names = _folder_names(places, count)
        return with_classes(files, count, names, f"--{name}")

    def loader(self, name: str, files: ImageFiles) -> DataLoader[Any]:
        """Return a loader in the files' order, and print their number."""
        self._say(f"{name}: {len(files)} images")
        return self.loader_over(files)

    def loader_over(self, files: ImageFiles) -> DataLoader[Any]:
        """Return a loader in the files' order."""
        return DataLoader(files, batch_size=self.batch_size, num_workers=min(self.workers, len(files)))


def _count(options: Mapping[str, Any], name: str, default: int, least: int) -> int:
    value: int = default if options.get(name) is None else options[name]
    if value < least:
        raise SettingError(f"--{name.replace('_', '-')}", value, f"a whole number, {least} or more")
    return value


def chosen_device(named: str | None) -> torch.device:
    """Return a device by its name (default: cuda if available, else cpu)."""
    if named is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if torch.device(named).type == "meta":
            raise ValueError("it holds no values")
        return torch.empty(0, device=named).device
    except Exception as error:  # torch raises anything, by device
        allowed = f"a device of this node: cpu, cuda, cuda:1, mps ({str(error).splitlines()[0]})"
        raise SettingError("--device", named, allowed) from error


def evaluate_folders(
    options: Mapping[str, Any], say: Say, others: Mapping[str, Any]
) -> tuple[dict[str, Result], dict[str, str]]:
    """Evaluate methods on folders of images.

    Args:
        options: The options of ``openood-adascale evaluate`` by name; missing ones are None.
        say: Called with a line for each step, and the table at the end.
        others: Other libraries' methods by KIND, with ``names(text)`` for the names that a text stands for, and
            ``method(name, network)``.

    Returns:
        Results by method, another library's as ``KIND_NAME``, and the reasons why methods of these were left out.
    """
    names = methods_named(options.get("methods"), others)
    reader = ImageReader(options, say)
    network = reader.loaded.network
    methods: dict[str, AnyMethod] = {}
    for name in names:
        kind, _, own = name.rpartition(":")
        if kind:
            methods[f"{kind}_{own}"] = others[kind].method(own, network)
        else:
            methods[name] = make_detector(name, network, options)
    benchmark, labelled = _benchmark(options, reader)
    if not labelled:
        say("ACC is left out: the ID test images have no labels (--labels, or a list with labels)")
    search = options.get("search")
    if search is None and benchmark.ood_val is None:
        say("no --ood-val: the settings are used as they are, without a search")
        search = False
    left_out: dict[str, str] = {}
    evaluator = Evaluator(
        benchmark,
        search=search,
        known_accuracy=None if labelled else math.nan,
        progress=reader.progress,
        cache_dir=options.get("cache_dir"),
        cache_tag=options.get("cache_tag"),
    )
    results = evaluator.run(methods, left_out)
    for name, why in left_out.items():
        say(f"{name.replace('_', ':', 1)}: left out: {why}")
    if not results:
        raise SettingError("--methods", options.get("methods"), "at least one that can be run here")
    say(_summary(results))
    return results, left_out


def methods_named(named: str | None, others: Mapping[str, Any]) -> list[str]:
    """Return the methods that ``--methods`` names, each once; another library's as ``KIND:NAME``."""
    more = "".join(f", {kind}:all, {kind}:NAME" for kind in others)
    allowed = f"all, or some of {', '.join(METHODS)}{more}"
    names: list[str] = []
    for name in filter(None, map(str.strip, (named or "all").split(","))):
        kind, _, own = name.partition(":")
        if kind in others and own:
            names += [f"{kind}:{one}" for one in others[kind].names(own)]
        elif name == "all" or name in METHODS:
            names += METHODS if name == "all" else [name]
        else:
            raise SettingError("--methods", name, allowed)
    if not names:
        raise SettingError("--methods", named, allowed)
    return list(dict.fromkeys(names))


def make_detector(
    name: str, network: nn.Module, options: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> AnyDetector:
    """Return a registered method for a network, with ``settings`` in place of its own.

    A method that is fitted on training images is fitted on validation images if there are no others.
    """
    if name not in METHODS:
        raise SettingError("--method", name, f"one of {', '.join(METHODS)}")
    method, given = METHODS[name], settings or {}
    known = method.detector.settings_class.names()
    for key in given:
        if key not in known:
            raise SettingError(f"--set {key}", given[key], f"a setting of {name}: {', '.join(known)}")
    passes = {
        key: options[key] for key in ("precision", "forward_batch_size") if options.get(key) is not None
    }
    split = {"fit_split": "val"} if options.get("train") is None and "fit_split" in known else {}
    return method.detector(network, **{**method.defaults, **passes, **split, **given})


def _benchmark(options: Mapping[str, Any], reader: ImageReader) -> tuple[Benchmark, int]:
    """Return the loaders, and the number of labelled ID test images."""
    test, names = reader.files("id", options["id"], options.get("labels")), reader.loaded.classes
    single = {name: options[name] for name in ("val", "train", "ood_val") if options.get(name) is not None}
    places = single, options.get("near") or {}, options.get("far") or {}
    files = [{name: reader.files(name, where) for name, where in one.items()} for one in places]
    reader.check_class_names(test)
    if test.classes or any(label != -1 for label in test.labels):
        test = reader.with_classes("id", test, [options.get("train"), options.get("val"), options["id"]])
        names = test.classes
    id_loader = reader.loader("id", test)
    loaders, near, far = ({name: reader.loader(name, found) for name, found in one.items()} for one in files)
    val, ood_val, train = (loaders.get(name) for name in ("val", "ood_val", "train"))
    benchmark = Benchmark(id_loader, near, far, val, ood_val, train, classes=names)
    return benchmark, sum(label >= 0 for label in test.labels)


def _folder_names(places: Sequence[str | None], count: int) -> list[str]:
    """Return the class folders of the first place that has one for each class (empty if none has)."""
    for place in filter(None, places):
        try:
            found = find_images(place, FOLDERS).classes
        except SettingError:  # no class folders
            continue
        if len(found) == count:
            return found
    return []


def _summary(results: Mapping[str, Result]) -> str:
    rows = {
        METHODS[name].label if name in METHODS else name.replace("_", ":", 1): {
            f"{split} {column}": result.table[column][f"{split}ood"]
            for split in ("near", "far")
            if f"{split}ood" in result.table.index
            for column in ("FPR@95", "AUROC")
        }
        for name, result in results.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").to_string(float_format=lambda value: f"{value:.2f}")

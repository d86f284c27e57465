"""Evaluation of any network on folders of images: the command ``openood-adascale evaluate``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from ..data.files import FOLDERS, ImageFiles, find_broken, find_images
from ..data.labels import read_class_names, with_classes
from ..detectors.registry import METHODS
from ..errors import CacheError, ImageError, SettingError
from ..features.cache import feature_cache
from ..models.loading import LoadedNetwork, load_network
from .benchmark import Benchmark
from .evaluate import evaluate
from .one_pass import AnyDetector
from .postprocessors import Postprocessor, check
from .result import Result

Say = Callable[[str], Any]
"""Function that prints a line."""


class ImageReader:
    """A network on its device, and loaders of images for it: what ``evaluate``, ``fit`` and ``score`` share.

    Args:
        options: Options by name (``network``, ``weights``, ``transform``, ``classes``, ``device``, ``batch_size``,
            ``workers``, ``skip_broken``, ``quiet``); None or missing ones have their defaults.
        say: Called with a line for each thing that is loaded, found or left out.

    Raises:
        SettingError: An option that cannot be used.
    """

    def __init__(self, options: Mapping[str, Any], say: Say) -> None:
        self._say = say
        self.batch_size = _count(options, "batch_size", 64)
        self.workers = _count(options, "workers", 2, least=0)
        self.skip_broken = bool(options.get("skip_broken"))
        self.progress = False if options.get("quiet") else None
        """Progress bars: False hides them, None shows them in a terminal."""
        classes = options.get("classes")
        named = None if classes is None else read_class_names(classes)
        device = _device(options.get("device"))
        self.loaded: LoadedNetwork = load_network(
            options["network"], options.get("weights"), options.get("transform"), say
        )
        if named is not None:
            self.loaded.classes = list(named)
        say(f"{self.loaded.name}: {self.loaded.description}")
        self.loaded.network.to(device)
        self._class_count = 0

    def files(self, name: str, where: str, labels: str | None = None) -> ImageFiles:
        """Return the images in a folder or list, with the network's transform.

        Args:
            name: Name of the set.
            where: See :func:`~openood_adascale.data.files.find_images`.
            labels: As there.

        Raises:
            SettingError: None can be read, or as there.
        """
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
            raise SettingError(name, files.root, "images of which at least one can be read")
        return files.without(path for path, _ in broken)

    def class_count(self, files: ImageFiles) -> int:
        """Return C, the number of classes of the network; the first image is run once.

        Raises:
            ImageError: The image cannot be read.
            RuntimeError: The network fails on it.
        """
        if not self._class_count:
            self._class_count = self.loaded.class_count(files[0][0])
        return self._class_count

    def check_class_names(self, files: ImageFiles) -> None:
        """Check that there are as many names of classes as classes.

        Raises:
            SettingError: There are more or fewer.
        """
        names, count = self.loaded.classes, self.class_count(files)
        if len(names) != count:
            raise SettingError(
                "--classes", len(names), f"{count} names, one for each of the network's {count} classes"
            )

    def loader(self, name: str, files: ImageFiles) -> DataLoader[Any]:
        """Return a loader in the files' order, and print their number."""
        self._say(f"{name}: {len(files)} images")
        return self.loader_over(files)

    def loader_over(self, files: ImageFiles) -> DataLoader[Any]:
        """Return a loader in the files' order."""
        return DataLoader(files, batch_size=self.batch_size, num_workers=min(self.workers, len(files)))


def _count(options: Mapping[str, Any], name: str, default: int, least: int = 1) -> int:
    value = options.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingError(f"--{name.replace('_', '-')}", value, f"a whole number, {least} or more")
    return value


def _device(named: str | None) -> torch.device:
    if named is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(named)
        if found.type == "meta":
            raise ValueError("it holds no values")
        return torch.empty(0, device=found).device
    except Exception as error:  # torch raises anything, by device
        reason = str(error).splitlines()[0]
        raise SettingError(
            "--device", named, f"a device of this node: cpu, cuda, cuda:1, mps ({reason})"
        ) from error


class OtherMethods(Protocol):
    """Methods of another library, called ``KIND:NAME``."""

    def names(self, named: str) -> list[str]:
        """Return the names that ``named`` stands for: several, if it is ``all``."""

    def method(self, name: str, network: nn.Module) -> Postprocessor:
        """Return the method of this name.

        Raises:
            SettingError: There is none, or the library is not installed.
        """


class Evaluation(NamedTuple):
    """Results of :func:`evaluate_folders`."""

    results: dict[str, Result]
    """By method; another library's as ``KIND_NAME``."""
    left_out: dict[str, str]
    """Another library's methods that could not be run, and the reasons."""


def evaluate_folders(
    options: Mapping[str, Any], say: Say, others: Mapping[str, OtherMethods] | None = None
) -> Evaluation:
    """Evaluate methods on folders of images.

    Args:
        options: The options of ``openood-adascale evaluate`` by name; missing ones are None.
        say: Called with a line for each step, and the table at the end.
        others: Other libraries' methods by KIND.

    Raises:
        SettingError: An option that cannot be used, or no method that can be run.
        ImageError: An image that cannot be read.
        CacheError: The cache cannot be read or written.
    """
    wanted = methods_named(options.get("methods"), others or {})
    reader = ImageReader(options, say)
    network = reader.loaded.network
    detectors = {name: make_detector(name, network, options) for name in wanted if ":" not in name}
    postprocessors: dict[str, Postprocessor] = {}
    for name in wanted:
        kind, colon, own = name.partition(":")
        if colon and others:
            postprocessors[f"{kind}_{own}"] = others[kind].method(own, network)
    benchmark, labelled = _benchmark(options, reader)
    if labelled == 0:
        say("ACC is left out: the ID test images have no labels (--labels, or a list with labels)")
    search = options.get("search")
    if search is None and benchmark.ood_val is None:
        say("no --ood-val: the settings are used as they are, without a search")
        search = False
    found: dict[str, Result] = {}
    left_out = _refused(postprocessors, benchmark, search is not False)
    with feature_cache(options.get("cache_dir"), options.get("cache_tag")):
        accuracy = None if labelled else math.nan
        if detectors:
            found.update(
                evaluate(
                    detectors, benchmark, search=search, known_accuracy=accuracy, progress=reader.progress
                )
            )
            accuracy = _accuracy_in(found)
        for name, method in postprocessors.items():
            if name in left_out:
                continue
            try:
                found[name] = evaluate(
                    method, benchmark, search=search, known_accuracy=accuracy, progress=reader.progress
                )
            except (ImageError, CacheError):
                raise
            except Exception as error:  # another library's method raises anything
                left_out[name] = _reason(error)
            accuracy = accuracy if not found else _accuracy_in(found)  # computed once
    for name, why in left_out.items():
        say(f"{name.replace('_', ':', 1)}: left out: {why}")
    if not found:
        raise SettingError("--methods", options.get("methods"), "at least one that can be run here")
    results = {name: found[name] for name in (one.replace(":", "_", 1) for one in wanted) if name in found}
    say(_summary(results))
    return Evaluation(results, left_out)


def methods_named(named: Any, others: Mapping[str, OtherMethods]) -> list[str]:
    """Return the methods that ``--methods`` names, each once; another library's as ``KIND:NAME``.

    Raises:
        SettingError: An unknown name.
    """
    words = (named or "all").split(",") if isinstance(named, str | None) else [str(one) for one in named]
    names: list[str] = []
    for name in filter(None, (word.strip() for word in words)):
        kind, colon, own = name.partition(":")
        if colon and kind in others and own:
            names += [f"{kind}:{one}" for one in others[kind].names(own)]
        elif name != "all" and name not in METHODS:
            more = "".join(f", {kind}:all, {kind}:NAME" for kind in others)
            raise SettingError("--methods", name, f"all, or some of {', '.join(METHODS)}{more}")
        else:
            names += METHODS if name == "all" else [name]
    if not names:
        raise SettingError("--methods", named, f"all, or some of {', '.join(METHODS)}")
    return list(dict.fromkeys(names))


def make_detector(
    name: str, network: nn.Module, options: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> AnyDetector:
    """Return a registered method for a network.

    A method that is fitted on training images is fitted on validation images if there are no others.

    Args:
        name: Name of the method.
        network: The network.
        options: Options by name, of which ``precision``, ``forward_batch_size`` and ``train`` are used.
        settings: Settings in place of the method's own.

    Raises:
        SettingError: No such method, or a setting that is unknown or out of range.
    """
    if name not in METHODS:
        raise SettingError("--method", name, f"one of {', '.join(METHODS)}")
    method = METHODS[name]
    known = method.detector.settings_class.names()
    chosen = dict(method.defaults)
    for option in ("precision", "forward_batch_size"):
        if options.get(option) is not None:
            chosen[option] = options[option]
    if options.get("train") is None and "fit_split" in known:
        chosen["fit_split"] = "val"
    for key, value in (settings or {}).items():
        if key not in known:
            raise SettingError(f"--set {key}", value, f"a setting of {name}: {', '.join(known)}")
        chosen[key] = value
    return method.detector(network, **chosen)


def _benchmark(options: Mapping[str, Any], reader: ImageReader) -> tuple[Benchmark, int]:
    """Return the loaders, and the number of labelled ID test images."""
    labels = options.get("labels")
    files = {"id": reader.files("id", options["id"], labels)}
    for name in ("val", "train", "ood_val"):
        if options.get(name) is not None:
            files[name] = reader.files(name, options[name])
    sets = {
        side: {name: reader.files(name, where) for name, where in (options.get(side) or {}).items()}
        for side in ("near", "far")
    }
    names: Sequence[str] = reader.loaded.classes
    if options.get("classes") is not None:
        reader.check_class_names(files["id"])
    if files["id"].classes or any(label != -1 for label in files["id"].labels):
        count = reader.class_count(files["id"])
        if files["id"].classes and not names:
            names = _folder_names([options.get("train"), options.get("val"), options["id"]], count)
        files["id"] = with_classes(files["id"], count, names, "--id")
        names = files["id"].classes
    loaders = {name: reader.loader(name, one) for name, one in files.items()}
    benchmark = Benchmark(
        test=loaders["id"],
        near={name: reader.loader(name, one) for name, one in sets["near"].items()},
        far={name: reader.loader(name, one) for name, one in sets["far"].items()},
        ood_val=loaders.get("ood_val"),
        classes=names,
        val=loaders.get("val"),
        train=loaders.get("train"),
    )
    return benchmark, sum(label >= 0 for label in files["id"].labels)


def _folder_names(places: Sequence[str | None], count: int) -> list[str]:
    """Return the class folders of the first place that has one for each class (empty if none has)."""
    for place in places:
        if place is None:
            continue
        try:
            found = find_images(place, FOLDERS).classes
        except SettingError:  # no class folders
            continue
        if len(found) == count:
            return found
    return []


def _refused(others: Mapping[str, Postprocessor], benchmark: Benchmark, search: bool) -> dict[str, str]:
    """Return the methods that cannot be run, as far as that is known before any pass, and the reasons."""
    found = {}
    for name, method in others.items():
        try:
            check(method, benchmark, search)
        except ImageError:
            raise
        except Exception as error:  # another library's method raises anything
            found[name] = _reason(error)
    return found


def _reason(error: Exception) -> str:
    told = " ".join(str(error).split())
    return told if isinstance(error, SettingError) else f"{type(error).__name__}: {told}"


def _accuracy_in(results: Mapping[str, Result]) -> float:
    return float(next(iter(results.values())).table["ACC"].iloc[0])


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

"""OpenOOD's protocol for any network and any folders of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import pandas as pd
from torch import nn
from torch.utils.data import DataLoader

from ..detectors.registry import METHODS
from ..errors import ImageError, SettingError, StoreError
from ..evidence.collect import batches
from ..evidence.plan import Execution, Plan
from ..evidence.reader import Reader
from ..evidence.sharing import using_store
from .accuracy import Hits
from .benchmark import Benchmark
from .evaluate import Result, evaluate
from .folders import FOLDERS, ImageFiles
from .one_pass import AnyDetector
from .per_image import class_names_in
from .postprocessors import Postprocessor, check
from .reading import Reading, Say


class Foreign(Protocol):
    """Methods of another library's, which are called ``KIND:NAME``."""

    def names(self, named: str) -> list[str]:
        """The names that ``named`` stands for: several, if it is ``all``."""

    def method(self, name: str, network: nn.Module) -> Postprocessor:
        """The one of this name.

        Raises:
            SettingError: there is none, or the library is not there.
        """


class Evaluation(NamedTuple):
    """What :func:`evaluate_folders` found."""

    results: dict[str, Result]
    """By method; another library's as ``KIND_NAME``."""
    left_out: dict[str, str]
    """Another library's methods that could not be run, and why."""


def evaluate_folders(
    chosen: Mapping[str, Any], say: Say, foreign: Mapping[str, Foreign] | None = None
) -> Evaluation:
    """Evaluate methods on folders of images.

    Args:
        chosen: as the options of ``openood-adascale evaluate`` by their names; those left out are None.
        say: what is told on the way, and the table at the end.
        foreign: other libraries' methods by their KIND.

    Raises:
        SettingError: an option that cannot be used, or no method that can be run.
        ImageError: an image that cannot be read.
        StoreError: the store cannot be used, or has no room.
    """
    named = None if chosen.get("classes") is None else class_names_in(chosen["classes"])
    wanted = methods_named(chosen.get("methods"), foreign or {})
    reading = Reading(chosen, say)
    network = reading.loaded.network
    detectors = {name: detector_of(name, network, chosen) for name in wanted if ":" not in name}
    others: dict[str, Postprocessor] = {}
    for name in wanted:
        kind, colon, own = name.partition(":")
        if colon and foreign:
            others[f"{kind}_{own}"] = foreign[kind].method(own, network)
    benchmark = _benchmark(chosen, reading, named)
    search = chosen.get("search")
    if search is None and benchmark.ood_val is None:
        say("no --ood-val: the methods' settings are taken as they are, without a search")
        search = False
    found, left_out = {}, _refused(others, benchmark, search is not False)
    with using_store(chosen.get("store")):
        accuracy = None if _all_labelled(benchmark.test) else math.nan
        if detectors:
            found.update(
                evaluate(
                    detectors,
                    benchmark,
                    search=search,
                    known_accuracy=accuracy,
                    progress=reading.progress,
                )
            )
            accuracy = float(next(iter(found.values())).table["ACC"].iloc[0])
        elif len(left_out) < len(others) and accuracy is None:
            accuracy = _accuracy(network, benchmark, reading.progress)
        for name, method in others.items():
            if name in left_out:
                continue
            try:
                found[name] = evaluate(
                    method, benchmark, search=search, known_accuracy=accuracy, progress=reading.progress
                )
            except (ImageError, StoreError):
                raise
            except Exception as error:  # whatever another library's method raises
                left_out[name] = _why(error)
    for name, why in left_out.items():
        say(f"{name.replace('_', ':', 1)}: left out: {why}")
    if not found:
        raise SettingError("--methods", chosen.get("methods"), "at least one that can be run here")
    results = {name: found[name] for name in (one.replace(":", "_", 1) for one in wanted) if name in found}
    say(_summary(results))
    return Evaluation(results, left_out)


def _all_labelled(loader: Any) -> bool:
    # An image list brings labels of its own.
    return min(loader.dataset.labels) >= 0


def methods_named(named: Any, foreign: Mapping[str, Foreign]) -> list[str]:
    """The methods that ``--methods`` names, each once; another library's as ``KIND:NAME``.

    Raises:
        SettingError: one that there is not.
    """
    words = (named or "all").split(",") if isinstance(named, str | None) else [str(one) for one in named]
    names: list[str] = []
    for name in filter(None, (word.strip() for word in words)):
        kind, colon, own = name.partition(":")
        if colon and kind in foreign and own:
            names += [f"{kind}:{one}" for one in foreign[kind].names(own)]
        elif name != "all" and name not in METHODS:
            more = "".join(f", {kind}:all, {kind}:NAME" for kind in foreign)
            raise SettingError("--methods", name, f"all, or some of {', '.join(METHODS)}{more}")
        else:
            names += METHODS if name == "all" else [name]
    return list(dict.fromkeys(names))


def _benchmark(chosen: Mapping[str, Any], reading: Reading, classes: Any) -> Benchmark:
    labels = chosen.get("labels")
    test = reading.loader("id", chosen["id"], labels)
    numbered = test.dataset.classes if labels == FOLDERS and isinstance(test.dataset, ImageFiles) else []
    known = {
        name: None if chosen.get(name) is None else _known(name, chosen[name], reading, numbered)
        for name in ("val", "train")
    }
    return Benchmark(
        test=test,
        near={name: reading.loader(name, where) for name, where in chosen["near"].items()},
        far={name: reading.loader(name, where) for name, where in chosen["far"].items()},
        ood_val=None if chosen.get("ood_val") is None else reading.loader("ood_val", chosen["ood_val"]),
        classes=reading.loaded.classes if classes is None else classes,
        val=known["val"],
        train=known["train"],
    )


def _known(name: str, where: str, reading: Reading, classes: list[str]) -> DataLoader[Any]:
    """In-distribution images to learn from, with the numbers that the test images' classes have where they lie in folders
    of these names, too."""
    if classes:
        try:
            files = reading.files(name, where, FOLDERS)
        except SettingError:  # no folders of classes, which few methods need
            files = None
        if files is not None and {files.classes[label] for label in files.labels} <= {*classes}:
            numbers = [classes.index(files.classes[label]) for label in files.labels]
            return reading.loader_of(name, ImageFiles(files.paths, numbers, files.transform, classes))
    return reading.loader(name, where)


def _refused(others: Mapping[str, Postprocessor], benchmark: Benchmark, search: bool) -> dict[str, str]:
    """Those that can be told not to run before any pass, and why."""
    found = {}
    for name, method in others.items():
        try:
            check(method, benchmark, search)
        except ImageError:
            raise
        except Exception as error:
            found[name] = _why(error)
    return found


def _why(error: Exception) -> str:
    told = " ".join(str(error).split())
    return told if isinstance(error, SettingError) else f"{type(error).__name__}: {told}"


def _accuracy(network: nn.Module, benchmark: Benchmark, progress: bool | None) -> float:
    """The network's, in percent, of the pass that keeps the test images' activations."""
    hits = Hits()
    for evidence, labels in batches(
        Reader(network), benchmark.test, Plan(), Execution(), progress, "Accuracy"
    ):
        hits.add(evidence.prediction.cpu().numpy(), labels)
    return hits.percent()


def detector_of(
    name: str, network: nn.Module, chosen: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> AnyDetector:
    """A registered method for ``network``, with the precision that was chosen; one that learns from training images learns
    from validation images where there are no others.

    Args:
        settings: over the method's own.

    Raises:
        SettingError: no such method, or a setting unknown or out of range.
    """
    if name not in METHODS:
        raise SettingError("--methods", name, f"all, or some of {', '.join(METHODS)}")
    method = METHODS[name]
    defaults = dict(method.defaults)
    if chosen.get("precision") is not None:
        defaults["precision"] = chosen["precision"]
    if chosen.get("train") is None and "learn_from" in method.detector.settings_class.names():
        defaults["learn_from"] = "val"
    return method.detector(network, **{**defaults, **(settings or {})})


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

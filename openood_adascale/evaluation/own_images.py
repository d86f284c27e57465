"""OpenOOD's protocol for any network and any folders of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from torch import nn

from ..detectors.registry import METHODS
from ..errors import SettingError
from .benchmark import Benchmark
from .evaluate import Result, evaluate
from .one_pass import AnyDetector
from .per_image import class_names_in
from .reading import Reading, Say


def evaluate_folders(chosen: Mapping[str, Any], say: Say) -> dict[str, Result]:
    """Evaluate methods on folders of images.

    Args:
        chosen: as the options of ``openood-adascale evaluate`` by their names; those left out are None.
        say: what is told on the way, and the table at the end.

    Raises:
        SettingError: an option that cannot be used.
        ImageError: an image that cannot be read.
        StoreError: the store cannot be used, or has no room.
    """
    named = None if chosen.get("classes") is None else class_names_in(chosen["classes"])
    reading = Reading(chosen, say)
    labels = chosen.get("labels")
    detectors = _detectors(chosen, reading.loaded.network)
    val, ood_val, train = (
        None if chosen.get(name) is None else reading.loader(name, chosen[name])
        for name in ("val", "ood_val", "train")
    )
    benchmark = Benchmark(
        test=reading.loader("id", chosen["id"], labels),
        near={name: reading.loader(name, where) for name, where in chosen["near"].items()},
        far={name: reading.loader(name, where) for name, where in chosen["far"].items()},
        val=val,
        ood_val=ood_val,
        train=train,
        classes=reading.loaded.classes if named is None else named,
    )
    search = chosen.get("search")
    if search is None and benchmark.ood_val is None:
        say("no --ood-val: the methods' settings are taken as they are, without a search")
        search = False
    results = evaluate(
        detectors,
        benchmark,
        search=search,
        known_accuracy=None if labels else math.nan,
        progress=reading.progress,
        store=chosen.get("store"),
    )
    say(_summary(results))
    return results


def _detectors(chosen: Mapping[str, Any], network: nn.Module) -> dict[str, AnyDetector]:
    named = chosen.get("methods") or "all"
    names = [
        name.strip() for name in (named.split(",") if isinstance(named, str) else named) if str(name).strip()
    ]
    names = [one for name in names for one in (METHODS if name == "all" else [name])]
    detectors: dict[str, AnyDetector] = {}
    for name in dict.fromkeys(names):
        detectors[name] = detector_of(name, network, chosen)
    return detectors


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
        METHODS[name].label: {
            f"{split} {column}": result.table[column][f"{split}ood"]
            for split in ("near", "far")
            if f"{split}ood" in result.table.index
            for column in ("FPR@95", "AUROC")
        }
        for name, result in results.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").to_string(float_format=lambda value: f"{value:.2f}")

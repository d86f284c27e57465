"""Entries for OpenOOD's leaderboard, as it asks for them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

import pandas as pd

from .files import OutputFolder
from .identify import Identity
from .runs import Evaluated, Run
from .text import percentage

FIELDS = (
    "Training",
    "Postprocessor",
    "Near-OOD_AUROC",
    "Far-OOD_AUROC",
    "ID_Accuracy",
    "Outlier_Data",
    "Arch",
    "Additional_Description",
)
"""What the leaderboard asks of an entry, in its order and spelling."""

# How the leaderboard spells networks.
_ARCHS = {
    "resnet18_32x32": "ResNet18",
    "resnet18_224x224": "ResNet18",
    "resnet50": "ResNet50",
    "resnet50-ISH": "ResNet50",
    "regnet-y-16gf": "RegNet_Y_16GF",
    "vit-b-16": "ViT-B/16",
    "swin-t": "Swin-T",
    "swin-b": "Swin-B",
}


def write(run: Run, out: OutputFolder, entry: Mapping[str, str]) -> list[str]:
    """Entries as CSV and JSON per benchmark, and copies of the result CSVs; returns notes on what lacks.

    ``entry``: what the entries say other than the folder's name does.
    """
    notes = []
    for scheme, methods in run.methods.items():
        entries, copies = [], out.inside(scheme)
        for method in methods:
            made = _entry(run.identity, method)
            if made is None:
                notes.append(f"{method.label} ({scheme}): no leaderboard entry, which needs near and far OOD")
                continue
            entries.append({**made, **entry})
            if method.table.source:
                copies.put(copies.unique("", method.label, ".csv"), method.table.source.read_bytes())
        if entries:
            name = _benchmark(run.identity.dataset, scheme)
            out.put(f"{name}.csv", pd.DataFrame(entries, columns=list(FIELDS)).to_csv(index=False))
            out.put(f"{name}.json", json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
    return notes


def _entry(identity: Identity, method: Evaluated) -> dict[str, str] | None:
    near, far = method.value("nearood", "AUROC"), method.value("farood", "AUROC")
    if math.isnan(near[0]) or math.isnan(far[0]):
        return None
    accuracy = method.value("nearood", "ACC")
    epochs = re.search(r"_e(\d+)_", identity.run)
    return {
        "Training": "ISH" if identity.network == "resnet50-ISH" else identity.training or "CrossEntropy",
        "Postprocessor": method.label,
        "Near-OOD_AUROC": percentage(*near),
        "Far-OOD_AUROC": percentage(*far),
        "ID_Accuracy": "/" if math.isnan(accuracy[0]) else percentage(*accuracy),
        "Outlier_Data": "No",
        "Arch": _ARCHS.get(identity.network or "", identity.network or ""),
        "Additional_Description": "torchvision ckpt"
        if "tvsv" in identity.run
        else f"{epochs[1]} epochs"
        if epochs
        else "",
    }


def _benchmark(dataset: str | None, scheme: str) -> str:
    """The leaderboard's name of a benchmark: ``cifar10``, ``imagenet1k_ood``."""
    name = {"imagenet": "imagenet1k"}.get(dataset or "results", dataset or "results")
    return name + ("" if name.startswith("cifar") and scheme == "ood" else f"_{scheme}")

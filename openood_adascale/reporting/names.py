"""What methods, networks, datasets and OOD sets are called: in OpenOOD's files and folders, and as published."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..detectors.registry import METHODS

SCHEMES = ("ood", "fsood")
DATASETS = ("imagenet200", "imagenet", "cifar100", "cifar10")  # a name before its own prefix
AVERAGES = ("nearood", "farood")
"""The rows of result tables that are no OOD sets."""

_OURS = {method.name: method.label for method in METHODS.values()}

PUBLISHED = {
    "mls": "MLS",
    "react": "ReAct",
    "ash": "ASH",
    **_OURS,
    "adascale_a": "AdaSCALE-A",
    "adascale_l": "AdaSCALE-L",
}
"""The published name of the method behind a postprocessor's name (OpenOOD's, and this package's)."""

_AS_OPENOOD_SPELLS_IT = (
    *("KNN", "VIM", "ODIN", "MDS", "RMDS", "GEN", "SHE", "DICE", "OpenMax", "Gram"),
    *("GradNorm", "RankFeat", "fDBD", "NCI", "Relation", "OpenGAN", "NNGuide"),
)
LABELS = {
    **PUBLISHED,
    "adascale_a": "AdaSCALE-A (OpenOOD)",
    "adascale_l": "AdaSCALE-L (OpenOOD)",
    **{name.lower(): name for name in _AS_OPENOOD_SPELLS_IT},
    "temp_scaling": "TempScale",
    "mds_ensemble": "MDSEns",
    "klm": "KLM",
    "kl_matching": "KLM",
}
"""How tables and pictures spell postprocessors; OpenOOD's as its leaderboard does."""

_OPENOODS = re.compile(r"openood[_:](?=.)", re.IGNORECASE)
_MARK = " (OpenOOD)"

NETWORKS = {
    "resnet18_32x32": "resnet18_32x32",
    "resnet18_224x224": "resnet18_224x224",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "regnet": "regnet-y-16gf",
    "regnet_y_16gf": "regnet-y-16gf",
    "resnext50": "resnext50",
    "resnext50_32x4d": "resnext50",
    "densenet201": "densenet201",
    "efficientnet_v2_l": "efficientnetv2-l",
    "efficientnetv2_l": "efficientnetv2-l",
    "vit_b_16": "vit-b-16",
    "swin_b": "swin-b",
    "swin_t": "swin-t",
    "wrn_28_10": "wrn-28-10",
    "densenet_101": "densenet-101",
    "densenet101": "densenet-101",
}
"""The published networks by their spellings in folder and preset names, after :func:`words_of`."""

# main.py's dataset files and the paper spell some OOD sets otherwise than eval_ood.py.
_SET_ALIASES = {"openimageo": "openimage_o", "imageneto": "imagenet_o", "place365": "places365"}


def label_of(name: str) -> str:
    """How tables and pictures spell a postprocessor; a name that nobody knows stays. ``openood_NAME`` (``openood:NAME``)
    is OpenOOD's own, as ``evaluate`` calls it beside this package's."""
    own = _OPENOODS.match(name)
    if own is None:
        return LABELS.get(name.lower(), name)
    label = label_of(name[own.end() :])
    return label if label.endswith(_MARK) else f"{label}{_MARK}"


def is_adascale(name: str) -> bool:
    """Whether a postprocessor's or preset's name, or a label, begins as those of this package's AdaSCALE do."""
    ours = (method.name for method in METHODS.values() if method.where == METHODS["adascale"].where)
    return f"{words_of(name)}_".startswith(tuple(f"{known}_" for known in ours))


def canonical_set(name: str) -> str:
    """One spelling per OOD set: ``openimageo`` and ``OpenImage-O`` are ``openimage_o``."""
    name = words_of(name)
    return _SET_ALIASES.get(name.replace("_", ""), name)


def method_of(stem: str) -> tuple[str | None, tuple[str | None, str] | None]:
    """The published method that a postprocessor's name stands for, and a preset's (dataset, network).

    This package's presets are called ``<method>_<more>``, where more is a network and perhaps its dataset.
    """
    words = words_of(stem)
    if (own := words.removeprefix("openood_")) in PUBLISHED:
        return PUBLISHED[own], None
    ours = [
        method for method in METHODS.values() if method.in_openood and words.startswith(f"{method.name}_")
    ]
    for method in sorted(ours, key=lambda method: len(method.name), reverse=True):
        rest = words.removeprefix(f"{method.name}_")
        dataset = next((name for name in DATASETS if name in rest.split("_")), None)
        rest = rest.replace(dataset or "", "").replace("_", "")
        network = next((name for word, name in NETWORKS.items() if word.replace("_", "") == rest), None)
        if network:
            return method.label, (dataset, network)
    return None, None


def words_of(name: str) -> str:
    """A name in lower case, with one underscore for whatever separates its words."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def split_off(words: str, names: Mapping[str, str]) -> tuple[str | None, str]:
    """What the longest of ``names`` at the front of ``words`` stands for, and what is left of ``words``."""
    for name in sorted(names, key=len, reverse=True):
        if words == name or words.startswith(name + "_"):
            return names[name], words[len(name) + 1 :]
    return None, words

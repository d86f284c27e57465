"""Names of methods, networks, datasets and OOD sets, and their recognition in OpenOOD's paths."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..io import printable

SCHEMES = ("ood", "fsood")
AVERAGES = ("nearood", "farood")
DATASETS = ("imagenet200", "imagenet", "cifar100", "cifar10")

_PUBLISHED = {
    **{
        name.lower(): name for name in ("MSP", "MLS", "EBO", "ReAct", "ASH", "SCALE", "LTS", "BFAct", "OptFS")
    },
    **dict.fromkeys(("adascale", "adascale_a"), "AdaSCALE-A"),
    **dict.fromkeys(("adascale_logit", "adascale_l"), "AdaSCALE-L"),
}
_SPELLINGS = (
    "KNN VIM ODIN MDS RMDS GEN SHE DICE OpenMax Gram GradNorm RankFeat fDBD NCI Relation OpenGAN NNGuide KLM"
)
LABELS = {
    **_PUBLISHED,
    "adascale_a": "AdaSCALE-A (OpenOOD)",
    "adascale_l": "AdaSCALE-L (OpenOOD)",
    **{name.lower(): name for name in _SPELLINGS.split()},
    "temp_scaling": "TempScale",
    "mds_ensemble": "MDSEns",
    "kl_matching": "KLM",
}
"""Labels of postprocessors in tables and figures, as the paper and OpenOOD's leaderboard spell them."""

NETWORKS = {
    **{name: name for name in ("resnet18_32x32", "resnet18_224x224", "resnet50", "resnet101", "resnext50")},
    **dict.fromkeys(("regnet", "regnet_y_16gf"), "regnet-y-16gf"),
    **dict.fromkeys(("efficientnet_v2_l", "efficientnetv2_l"), "efficientnetv2-l"),
    **dict.fromkeys(("densenet_101", "densenet101"), "densenet-101"),
    "resnext50_32x4d": "resnext50",
    "resnet50_ish": "resnet50-ISH",
    "densenet201": "densenet201",
    "vit_b_16": "vit-b-16",
    "swin_b": "swin-b",
    "swin_t": "swin-t",
    "wrn_28_10": "wrn-28-10",
}
"""The published networks by the spellings in names of folders and presets."""

_SET_ALIASES = {"openimageo": "openimage_o", "imageneto": "imagenet_o", "place365": "places365"}
_DATASET = f"({'|'.join(DATASETS)})"
_NETWORK = f"({'|'.join(sorted(NETWORKS, key=len, reverse=True))})"
_PRESET = re.compile(f"(adascale_logit|adascale)_(?:{_DATASET}_)?{_NETWORK}")
_MAIN_PY = re.compile(f"{_DATASET}_(.+?)_test_(?:fs)?ood(?:_aps)?_(fsood|ood)_(.+)")
_EVAL_OOD = re.compile(f"{_DATASET}_(?:{_NETWORK}(?![^_])|([^_]+))_?([^_]*)")


def shortened(text: str, limit: int = 80) -> str:
    """Cut a text to at most ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def is_name(value: object) -> bool:
    """Return True for non-blank text without control characters."""
    return isinstance(value, str) and bool(value.strip()) and value == printable(value)


def words_of(name: str) -> str:
    """Return a name in lower case with one underscore between its words."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def canonical_set(name: str) -> str:
    """Return one spelling per OOD set, such as ``openimage_o`` for ``OpenImage-O``."""
    name = words_of(name)
    return _SET_ALIASES.get(name.replace("_", ""), name)


def label_of(name: str) -> str:
    """Return the label of a postprocessor; ``openood:knn`` is OpenOOD's own KNN."""
    own = re.match(r"openood[_:](?=.)", name, re.IGNORECASE)
    if own is None:
        return LABELS.get(name.lower(), name)
    label = label_of(name[own.end() :])
    return label if label.endswith("(OpenOOD)") else f"{label} (OpenOOD)"


def file_names(names: Iterable[str]) -> list[str]:
    """Return a file name for each name; no two differ by case or spelling alone."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        slug = re.sub(r"(?:[^\w.-]|_)+", "_", printable(name)).strip("_.") or "unnamed"
        slug = slug.encode()[:150].decode(errors="ignore")  # file systems allow 255 bytes
        for number in itertools.count(1):
            file = slug if number == 1 else f"{slug}_{number}"
            key = unicodedata.normalize("NFKC", file).casefold()
            if key not in taken:
                break
        taken.add(key)
        found.append(file)
    return found


@dataclass(frozen=True)
class Identity:
    """Contents of a path; None where the path does not say."""

    stem: str
    method: str | None = None
    dataset: str | None = None
    network: str | None = None
    scheme: str | None = None
    training: str | None = None
    """Training method of the network, if not as for the published results."""
    run: str = ""
    """The run's folder."""


def method_of(stem: str) -> tuple[str | None, str | None, str | None]:
    """Return the published method, dataset and network of a postprocessor's or preset's name."""
    words = words_of(stem).removeprefix("openood_")
    if preset := _PRESET.fullmatch(words):
        return _PUBLISHED[preset[1]], preset[2], NETWORKS[preset[3]]
    return _PUBLISHED.get(words), None, None


def identify(path: str | Path) -> Identity:
    """Read dataset, network, method and scheme from the path of a result file, as OpenOOD names its folders.

    Args:
        path: For example ``results/imagenet_resnet50_tvsv1_base_default/ood/adascale.csv``, or main.py's
            ``results/cifar10_resnet18_32x32_test_ood_ood_msp_default/s0/ood/ood.csv``.
    """
    path = Path(os.path.abspath(path))
    folders = list(path.parent.parts)[::-1]
    inside = list(itertools.takewhile(re.compile(r"s\d+|ood|fsood|scores").fullmatch, folders))
    run, stem = folders[len(inside)], path.stem
    scheme = next((name for name in inside if name in SCHEMES), None)
    words = words_of(run)
    if words == "ish":  # the authors' folder for ResNet-50 trained with ISH
        words = "imagenet_resnet50_ish"
    if found := _MAIN_PY.fullmatch(words):
        dataset, network, scheme, tail = found.groups()
        parts = tail.split("_")  # POSTPROCESSOR_MARK, both of which may have underscores
        stems = ["_".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)] or parts
        stem = next((one for one in stems if method_of(one)[0] or one in LABELS), stems[0])
        return Identity(stem, method_of(stem)[0], dataset, NETWORKS.get(network, network), scheme, None, run)
    if found := _EVAL_OOD.match(words):
        dataset, published, other, training = found.groups()
        if weights := re.fullmatch(r"tvsv(\d+)", training):
            training = "" if weights[1] == "1" else f"torchvision weights V{weights[1]}"
        elif training in ("base", "default"):
            training = ""
        network = NETWORKS[published] if published else other
        return Identity(stem, method_of(stem)[0], dataset, network, scheme, training or None, run)
    return Identity(stem, *method_of(stem), scheme)

"""Names of methods, networks, datasets and OOD sets, and their recognition in OpenOOD's paths."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..io import printable

SCHEMES = ("ood", "fsood")
AVERAGES = ("nearood", "farood")
DATASETS = ("imagenet200", "imagenet", "cifar100", "cifar10")  # a name before its own prefix

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
_INSIDE_A_RUN = re.compile(r"s\d+|ood|fsood|scores")
_MAIN_PY = re.compile(r"(?P<network>.+?)_test_(?:fs)?ood(?:_aps)?_(?P<scheme>fsood|ood)_(?P<tail>.+)")


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
        while len(slug.encode()) > 150:  # file systems allow 255 bytes
            slug = slug[:-1]
        number, one = 1, slug
        while (key := unicodedata.normalize("NFKC", one).casefold()) in taken:
            number, one = number + 1, f"{slug}_{number + 1}"
        taken.add(key)
        found.append(one)
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
    if words in _PUBLISHED:
        return _PUBLISHED[words], None, None
    for name in ("adascale_logit", "adascale", "lts", "bfact", "optfs"):  # presets: METHOD_[DATASET_]NETWORK
        if words.startswith(f"{name}_"):
            parts = words.removeprefix(f"{name}_").split("_")
            dataset = next((part for part in parts if part in DATASETS), None)
            network = NETWORKS.get("_".join(part for part in parts if part != dataset))
            return (_PUBLISHED[name], dataset, network) if network else (None, None, None)
    return None, None, None


def identify(path: str | Path) -> Identity:
    """Read dataset, network, method and scheme from the path of a result file, as OpenOOD names its folders.

    Args:
        path: For example ``results/imagenet_resnet50_tvsv1_base_default/ood/adascale.csv``, or main.py's
            ``results/cifar10_resnet18_32x32_test_ood_ood_msp_default/s0/ood/ood.csv``.
    """
    path = Path(os.path.abspath(path))
    stem = path.stem
    folders = list(reversed(path.parent.parts))
    inside = next((i for i, name in enumerate(folders) if not _INSIDE_A_RUN.fullmatch(name)), len(folders))
    run = folders[inside] if inside < len(folders) else ""
    scheme = next((name for name in folders[:inside] if name in SCHEMES), None)
    dataset, rest = _prefix(words_of(run), {name: name for name in DATASETS})
    if words_of(run) == "ish":  # the authors' folder for ResNet-50 trained with ISH
        dataset, rest = "imagenet", "resnet50_ish"
    if dataset is None or not rest:
        method, dataset, network = method_of(stem)
        return Identity(stem, method, dataset, network, scheme)
    if main := _MAIN_PY.fullmatch(rest):
        network = _prefix(main["network"], NETWORKS)[0] or main["network"]
        words = main["tail"].split("_")  # POSTPROCESSOR_MARK, both of which may have underscores
        stems = ["_".join(words[:count]) for count in range(len(words) - 1, 0, -1)] or words
        stem = next((one for one in stems if method_of(one)[0] or one in LABELS), stems[0])
        return Identity(stem, method_of(stem)[0], dataset, network, main["scheme"], None, run)
    network, training = _network_and_training(rest)
    return Identity(stem, method_of(stem)[0], dataset, network, scheme, training, run)


def _network_and_training(rest: str) -> tuple[str, str | None]:
    network, tail = _prefix(rest, NETWORKS)
    if network is None:
        network, _, tail = rest.partition("_")
    word = tail.partition("_")[0]
    if weights := re.fullmatch(r"tvsv(\d+)", word):
        return network, None if weights[1] == "1" else f"torchvision weights V{weights[1]}"
    return network, None if word in ("", "base", "default") else word


def _prefix(words: str, names: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the value of the longest of ``names`` in front of ``words``, and the rest of ``words``."""
    for name in sorted(names, key=len, reverse=True):
        if words == name or words.startswith(f"{name}_"):
            return names[name], words[len(name) + 1 :]
    return None, words

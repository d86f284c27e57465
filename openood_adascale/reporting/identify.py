"""What a result file's path says was evaluated, as OpenOOD names its folders."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from .names import DATASETS, NETWORKS, SCHEMES, method_of, split_off, words_of

# What OpenOOD has between a run's folder and its files.
_INSIDE_A_RUN = re.compile(r"s\d+|ood|fsood|scores|postprocessors")
_MAIN_PY = re.compile(r"(?P<network>.+?)_test_(?:fs)?ood(?:_aps)?_(?P<scheme>fsood|ood)_(?P<tail>.+)")


@dataclass
class Identity:
    """What a path says was evaluated; None where it says nothing."""

    stem: str
    method: str | None = None
    dataset: str | None = None
    network: str | None = None
    scheme: str | None = None
    training: str | None = None  # how the network was trained, where that is not the published way
    run: str = ""
    notes: list[str] = field(default_factory=list)


def identify(path: str | Path) -> Identity:
    """Tell dataset, network, method and scheme from a result file's path.

    For example ``results/imagenet_resnet50_tvsv1_base_default/ood/adascale.csv``,
    ``results/cifar10_resnet18_32x32_test_ood_ood_msp_default/s0/ood/ood.csv`` (main.py); and a preset such as
    ``adascale_resnet50.csv`` names its network itself.
    """
    path = Path(os.path.abspath(path))
    found = Identity(stem=path.stem)
    found.method, preset = method_of(path.stem)
    folders = list(reversed(path.parent.parts))
    inside = 1  # how many folders are the run's own; without a run's folder, the parent alone
    nearer_dataset: str | None = None
    nearer_network: str | None = None
    for index, name in enumerate(folders):
        words = words_of(name)
        dataset, rest = split_off(words, {key: key for key in DATASETS})
        of_a_run = all(_INSIDE_A_RUN.fullmatch(folder) for folder in folders[:index])
        if words == "ish" and of_a_run:  # the authors' folder for ResNet-50 trained with ISH
            dataset, rest = "imagenet", "resnet50_ish"
        main = _MAIN_PY.fullmatch(rest)
        network = split_off(main["network"] if main else words if dataset is None else rest, NETWORKS)[0]
        # An ancestor with a dataset's name and something else ("imagenet_project") is no run's folder.
        if dataset is None or not rest or not (network or main or of_a_run):
            nearer_dataset = nearer_dataset or (dataset if not rest else None)
            nearer_network = nearer_network or network
            continue
        if nearer_dataset not in (None, dataset) or nearer_network not in (None, network):
            break  # another run's, in which the file's own happens to lie
        found.dataset, found.run, inside = dataset, name, index
        if main:
            found.network, found.scheme = network or main["network"], main["scheme"]
            found.stem, found.method, preset = _main_py_method(main["tail"].split("_"))
            found.notes.append("main.py's folder name does not say how the network was trained")
        else:
            found.network, found.training = _network_and_training(rest)
        break
    found.scheme = next((name for name in folders[:inside] if name in SCHEMES), found.scheme)
    if preset and found.network is None:
        found.network, found.dataset = preset[1], found.dataset or preset[0]
    elif preset and preset[1] != found.network:
        found.notes.append(f"the preset {found.stem} is for {preset[1]}, the folder says {found.network}")
    return found


def _network_and_training(rest: str) -> tuple[str, str | None]:
    """From what follows the dataset in a run's folder; training is None where it is the published way."""
    network, rest = split_off(rest, NETWORKS)
    if network is None:
        network, _, rest = rest.partition("_")
    training = None
    words = rest.split("_") if rest else []
    if words and (weights := re.fullmatch(r"tvsv(\d+)", words[0])):
        words.pop(0)
        if weights[1] != "1":
            training = f"torchvision weights V{weights[1]}"
    if network == "resnet50" and words[:1] == ["ish"]:
        network = "resnet50-ISH"
    elif words and words[0] != "base":
        training = words[0]
    return network, training


def _main_py_method(words: list[str]) -> tuple[str, str | None, tuple[str | None, str] | None]:
    """From <postprocessor>_<mark>, both of which may have underscores: the longest known name wins."""
    for count in range(len(words) - 1, 0, -1):
        stem = "_".join(words[:count])
        method, preset = method_of(stem)
        if method:
            return stem, method, preset
    return "_".join(words[:-1]) or words[0], None, None

"""The paper's settings for each network (Tables 13 and 14), by the names under which they are packaged.

``python -m openood_adascale.published.presets FOLDER`` writes their YAML files, for ``configs/postprocessors``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from ..detectors.registry import METHODS
from . import hyperparameters

_SCALES = {"A": "the activation", "L": "the logits"}
_YML = """\
# AdaSCALE-{variant} (scales {scales}) with the paper's settings for {network} on {dataset}: {source} of arXiv 2503.08023,
# k1 and k2 as the paper names them. No search.
postprocessor:
  name: {name}
  APS_mode: False
  postprocessor_args:
    percentile: {percentile:11} # [p_min, p_max], in percent
    k1: {k1:<19} # percent of the activations in the shift Q
    k2: {k2:<19} # percent of the activations in the correction C_o
    lmbda: {lmbda:<16} # Q' = lmbda * Q + C_o
    o: {o:<20} # fraction of the channel values that are perturbed
    epsilon: {epsilon:<14} # how far, in units of the normalised image
    pixels: trivial
    num_samples: 5000
    seed: 0
"""


def preset_name(variant: str, dataset: str, network: str) -> str:
    """Return the name of a preset, such as ``adascale_vit_b_16`` or ``adascale_logit_cifar10_wrn_28_10``.

    Args:
        variant: ``A`` or ``L``.
        dataset: As in :func:`~openood_adascale.published.hyperparameters`; ``imagenet`` is left out of the name.
        network: As there.
    """
    method = next(method.name for method in METHODS.values() if method.label == f"AdaSCALE-{variant}")
    parts = [method, network] if dataset == "imagenet" else [method, dataset, network]
    return re.sub(r"[^0-9a-z]+", "_", "_".join(parts).lower())


def presets() -> pd.DataFrame:
    """Return one row per preset: its name in OpenOOD and the settings of the paper's tables."""
    table = hyperparameters()
    names = [preset_name(*row) for row in table[["variant", "dataset", "network"]].itertuples(index=False)]
    table.insert(0, "name", names)
    return table


def yml(name: str) -> str:
    """Return the YAML file with which OpenOOD runs a preset.

    Raises:
        KeyError: If there is no preset of this name.
    """
    rows = {row["name"]: row for row in presets().to_dict("records")}
    row = rows[name]
    return _YML.format(
        name=name,
        **{key: row[key] for key in ("variant", "dataset", "network", "source", "o", "epsilon")},
        scales=_SCALES[row["variant"]],
        percentile=f"[{row['p_min']:g}, {row['p_max']:g}]",
        k1=float(row["k1_percent"]),
        k2=float(row["k2_percent"]),
        lmbda=float(row["lambda"]),
    )


def write(folder: str | Path) -> list[Path]:
    """Write the YAML file of every preset and return their paths."""
    paths = [Path(folder) / f"{name}.yml" for name in presets()["name"]]
    for path in paths:
        path.write_text(yml(path.stem), encoding="utf-8")
    return paths


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m openood_adascale.published.presets FOLDER")
    print(*write(sys.argv[1]), sep="\n")

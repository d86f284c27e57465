"""The paper's settings for each network (Tables 13 and 14), by the names under which they are packaged."""

from __future__ import annotations

import re

import pandas as pd

from .published import hyperparameters


def preset_name(variant: str, dataset: str, network: str) -> str:
    """``adascale_vit_b_16``, ``adascale_logit_cifar10_wrn_28_10``: the dataset is named unless it is ImageNet.

    Args:
        variant: ``A`` or ``L``.
        dataset, network: as the table of :func:`~openood_adascale.published.hyperparameters` names them.
    """
    method = {"A": "adascale", "L": "adascale_logit"}[variant]
    parts = [method, network] if dataset == "imagenet" else [method, dataset, network]
    return re.sub(r"[^0-9a-z]+", "_", "_".join(parts).lower())


def presets() -> pd.DataFrame:
    """One row per preset: its name in OpenOOD and the settings that the paper's tables give."""
    table = hyperparameters()
    names = [preset_name(*row) for row in table[["variant", "dataset", "network"]].itertuples(index=False)]
    table.insert(0, "name", names)
    return table

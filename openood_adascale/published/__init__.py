"""Published results and settings of AdaSCALE (ICML 2026), as data.

``published_results.csv`` holds Table 2 of the paper, its ablations (Tables 6, 10 and 11) and the results per dataset that
the authors published as OpenOOD v1.5 result files; ``hyperparameters.csv`` holds Tables 13 and 14. Each row names its
source.
"""

from __future__ import annotations

import re
from importlib.resources import files

import pandas as pd

_IMAGENET = {"nearood": {"ssb_hard", "ninco"}, "farood": {"inaturalist", "openimage_o", "textures"}}
_CIFAR_FAR = {"mnist", "svhn", "texture", "places365"}
_OPENOOD_SETS = {
    "imagenet": _IMAGENET,
    "imagenet200": _IMAGENET,
    "cifar10": {"nearood": {"cifar100", "tin"}, "farood": _CIFAR_FAR},
    "cifar100": {"nearood": {"cifar10", "tin"}, "farood": _CIFAR_FAR},
}
_PAPER_SETS = {
    "near-average": {"ssb_hard", "ninco", "imagenet_o"},
    "far-average": {"inaturalist", "openimage_o", "textures", "places"},
}


def _read(name: str) -> pd.DataFrame:
    with files(__name__).joinpath(name).open(encoding="utf-8") as file:
        return pd.read_csv(file)


def hyperparameters() -> pd.DataFrame:
    """Return the paper's settings for each network (Tables 13 and 14), k1 and k2 as the paper names them.

    Columns: variant (A or L), dataset, network, p_min and p_max (percentiles, in percent), lambda, k1_percent
    and k2_percent (percent of the feature's entries), o (fraction of the pixel values), epsilon (on the
    normalised image), source.
    """
    return _read("hyperparameters.csv")


def presets() -> pd.DataFrame:
    """Return :func:`hyperparameters` by the ``name`` of their YAML files for OpenOOD, such as ``adascale_vit_b_16``."""
    table = hyperparameters()
    names = []
    for variant, dataset, network in table[["variant", "dataset", "network"]].itertuples(index=False):
        method = "adascale" if variant == "A" else "adascale_logit"
        parts = [method, network] if dataset == "imagenet" else [method, dataset, network]
        names.append(re.sub(r"[^0-9a-z]+", "_", "_".join(parts).lower()))
    table.insert(0, "name", names)
    return table


def results() -> pd.DataFrame:
    """Return the published results, one row per network, method and OOD set.

    Columns: dataset, network, method, scheme (``ood`` or ``fsood``), ood_set, fpr95 and auroc (percent),
    source, and note (a caveat for comparisons, or empty).

    ``ood_set`` is one of OpenOOD's sets; or OpenOOD's averages ``nearood`` / ``farood``; or the paper's ``near-average`` /
    ``far-average``, which are over more sets (:func:`averaged_sets`).
    """
    return _read("published_results.csv").fillna({"note": ""})


def averaged_sets(dataset: str, ood_set: str) -> set[str] | None:
    """Return the OOD sets behind an average of :func:`results`, or None if ``ood_set`` is no average.

    The paper's averages are also over ImageNet-O (near) and Places (far), which OpenOOD's do not include.
    """
    return {**_OPENOOD_SETS[dataset], **_PAPER_SETS}.get(ood_set)

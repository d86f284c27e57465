"""The authors' figures as result files in OpenOOD's three formats; and their comparison."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from openood_adascale import published
from openood_adascale.cli import main
from openood_adascale.metrics import COLUMNS

IMAGENET = ("ssb_hard", "ninco", "nearood", "inaturalist", "textures", "openimage_o", "farood")
RESNET50 = "imagenet_resnet50_tvsv1_base_default"
HEADER = ",FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC\n"


def authors(dataset="imagenet", network="resnet50", method="AdaSCALE-A", scheme="ood") -> pd.DataFrame:
    """The authors' figures as an evaluation's table: rows OOD sets, OpenOOD's columns."""
    table = published.results()
    table = table[table["source"].str.startswith("the authors'")].set_index(
        ["dataset", "network", "method", "scheme"]
    )
    table = table.sort_index(kind="stable").loc[(dataset, network, method, scheme)].set_index("ood_set")
    return pd.DataFrame(
        {"FPR@95": table["fpr95"], "AUROC": table["auroc"], "AUPR_IN": 90.0, "AUPR_OUT": 60.0, "ACC": 76.19}
    ).rename_axis(None)


def imagenet_csv(path: Path, table: pd.DataFrame) -> Path:
    """As eval_ood_imagenet.py writes: two decimals, one run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, float_format="{:.2f}".format)
    return path


def seeds_csv(path: Path, table: pd.DataFrame, std: float = 0.25) -> Path:
    """As eval_ood.py writes: 'mean ± std' strings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [["{:.2f} \u00b1 {:.2f}".format(mean, std) for mean in row] for row in table.to_numpy()]  # noqa: UP032
    pd.DataFrame(cells, index=table.index, columns=table.columns).to_csv(path)
    return path


def main_csv(path: Path, table: pd.DataFrame) -> Path:
    """As main.py appends to ood.csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["dataset", *COLUMNS])
        if new:
            writer.writeheader()
        for name, row in table.iterrows():
            writer.writerow({"dataset": name, **{metric: f"{row[metric]:.2f}" for metric in COLUMNS}})
    return path


def comparison(*words: object) -> int:
    """``openood-adascale compare``; its exit status."""
    return main(["compare", *map(str, words)])

"""Runs, result files and score files for the tests of the report, and a parser for its page."""

from __future__ import annotations

import csv
import pickle
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from openood_adascale import published
from openood_adascale.cli import main
from openood_adascale.metrics import COLUMNS, ood_metrics
from openood_adascale.report.run import Images, MethodResult, Run, table_of

SETS = {"near": ("ssb_hard", "ninco"), "far": ("inaturalist", "textures", "openimage_o")}
IMAGENET = (*SETS["near"], "nearood", *SETS["far"], "farood")
RESNET50 = "imagenet_resnet50_tvsv1_base_default"
CIFAR10 = "cifar10_resnet18_32x32_base_e100_lr0.1_default"
HEADER = ",FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC\n"


def command(*words: object) -> int:
    """Run ``openood-adascale`` and return its exit status."""
    return main([str(word) for word in words])


# OpenOOD's files.


def authors(
    dataset: str = "imagenet", network: str = "resnet50", method: str = "AdaSCALE-A", scheme: str = "ood"
) -> pd.DataFrame:
    """Return the authors' published results as an evaluation's table."""
    table = published.results()
    table = table[table["source"].str.startswith("the authors'")].set_index(
        ["dataset", "network", "method", "scheme"]
    )
    table = table.sort_index(kind="stable").loc[(dataset, network, method, scheme)].set_index("ood_set")
    return pd.DataFrame(
        {"FPR@95": table["fpr95"], "AUROC": table["auroc"], "AUPR_IN": 90.0, "AUPR_OUT": 60.0, "ACC": 76.19}
    ).rename_axis(None)


def flat(value: float) -> pd.DataFrame:
    """Return a table with AUROC ``value`` and FPR@95 100 − ``value`` everywhere."""
    return pd.DataFrame([[100 - value, value, 90.0, 50.0, 76.19]] * len(IMAGENET), IMAGENET, list(COLUMNS))


def imagenet_csv(path: Path, table: pd.DataFrame) -> Path:
    """Write a table as ``eval_ood_imagenet.py`` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, float_format="{:.2f}".format)
    return path


def seeds_csv(path: Path, table: pd.DataFrame, std: float = 0.25) -> Path:
    """Write a table as ``eval_ood.py`` does, over several training runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.map(f"{{:.2f}} ± {std:.2f}".format).to_csv(path)
    return path


def main_csv(path: Path, table: pd.DataFrame) -> Path:
    """Append a table as ``main.py`` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["dataset", *COLUMNS])
        if new:
            writer.writeheader()
        for name, row in table.iterrows():
            writer.writerow({"dataset": name, **{metric: f"{row[metric]:.2f}" for metric in COLUMNS}})
    return path


def triple(rng: np.random.Generator, count: int, mean: float, label: int) -> list[np.ndarray]:
    """Return (prediction, confidence, label), as OpenOOD's ``inference`` does."""
    return [rng.integers(0, 10, count), rng.normal(mean, 1, count).astype(np.float32), np.full(count, label)]


def evaluator_scores(quality: float = 2.0, csid: bool = False, seed: int = 0) -> dict:
    """Return ``Evaluator.scores`` after ``eval_ood()``."""
    rng = np.random.default_rng(seed)
    labels = torch.arange(200) % 10
    return {
        "id": {"train": None, "val": None, "test": triple(rng, 200, quality, 1)},
        "csid": {"imagenet_v2": triple(rng, 100, 0.5, 1) if csid else None},
        "ood": {
            "val": None,
            **{side: {name: triple(rng, 150, 0, -1) for name in names} for side, names in SETS.items()},
        },
        "id_preds": torch.where(torch.arange(200) < 150, labels, labels + 1),
        "id_labels": labels,
        "csid_preds": {"imagenet_v2": torch.zeros(100, dtype=torch.int64) if csid else None},
        "csid_labels": {"imagenet_v2": torch.arange(100) % 2 if csid else None},
    }


def save_scores(path: Path, scores: object, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(scores, protocol))
    return path


class Hostile:
    """Pickles to a call of a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


# This package's runs.


def numbered(path: Path, number: int) -> str:
    """Save a picture of 4 × 3 blocks that show the bits of a number, and return its path."""
    bits = np.array([(number >> bit) & 1 for bit in range(12)], np.uint8).reshape(3, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * bits).repeat(40, 0).repeat(40, 1)).save(path, "png")
    return str(path)


def sample_run(
    folder: Path | None = None, methods: tuple[str, ...] = ("msp", "adascale"), count: int = 40, seed: int = 0
) -> Run:
    """Return a run on two near sets and one far set; with numbered pictures if there is a folder for them.

    AdaSCALE is better than the others. ID images move less than those of each set but "exotic".
    """
    rng = np.random.default_rng(seed)
    near, far = ("cats", "dogs"), ("exotic",)
    keys = ("id", *near, *far)
    base = {key: rng.normal(2 * (key == "id"), 1, count) for key in keys}
    images = {
        key: Images(
            np.arange(count) % 3 if key == "id" else np.full(count, -1),
            np.arange(count) % 3,
            ()
            if folder is None
            else tuple(numbered(folder / key / f"{i}.png", 100 * place + i) for i in range(count)),
        )
        for place, key in enumerate(keys)
    }
    made = []
    for name in methods:
        noise = 0.1 if name.startswith("adascale") else 3.0
        scores = {key: base[key] + rng.normal(0, noise, count) for key in keys}
        rows = {key: ood_metrics(scores["id"], scores[key]) for key in (*near, *far)}
        method = MethodResult(name, table_of(rows, near, far).assign(ACC=90.0), scores=scores)
        if name.startswith("adascale"):
            method.oodness = {key: rng.normal({"id": 2, "exotic": 1}.get(key, 3), 0.1, count) for key in keys}
            method.percentiles = {key: 85 - values for key, values in method.oodness.items()}
            method.settings = {"percentile": (80, 85), "k1": 1}
            method.search = pd.DataFrame(
                {"percentile": ["[60, 60]", "[60, 70]", "[70, 70]"], "auroc": [80, 81.5, 79]}
            )
        made.append(method)
    classes = ("ant", "bee", "fly")
    return Run(
        made,
        near,
        far,
        images=images,
        classes=classes,
        id="insects",
        network="tiny",
        settings={"precision": "float32"},
    )


class Page(HTMLParser):
    """Tags, sources, alternative texts and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.script = ""
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        links = ("src", "href", "data", "srcset", "xlink:href", "action", "poster")
        self.sources += [value for name, value in attrs if name in links]

    def handle_data(self, data):
        if self._inside == "script":
            self.script += data
        elif self._inside != "style":
            self.text += data

    def handle_endtag(self, tag):
        self._inside = ""

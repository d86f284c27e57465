"""What OpenOOD and this package leave in a run's folder, made up; and the report that is made of it."""

from __future__ import annotations

import pickle
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from openood_adascale.cli import main
from openood_adascale.metrics import COLUMNS
from openood_adascale.reporting.unpickling import POSTPROCESSORS

SETS = {"near": ("ssb_hard", "ninco"), "far": ("inaturalist", "textures", "openimage_o")}
RESNET50 = "imagenet_resnet50_tvsv1_base_default"
CIFAR10 = "cifar10_resnet18_32x32_base_e100_lr0.1_default"
HEADER = ",FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC\n"
GOOD_SEARCH = {"p_min": [60, 65], "p_max": [70.0, 75.0], "pixels": ["all", "trivial"], "auroc": [80.0, 81.5]}


class Hostile:
    """Pickles to a call of ``function``, and would write ``marker`` when loaded carelessly."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def triple(rng, count: int, mean: float, label: int) -> list[np.ndarray]:
    """(prediction, confidence, label), as inference() returns them."""
    return [rng.integers(0, 10, count), rng.normal(mean, 1, count).astype(np.float32), np.full(count, label)]


def evaluator_scores(quality: float = 2.0, csid: bool = False, seed: int = 0) -> dict:
    """Evaluator.scores after eval_ood(), arrays and tensors in the places where OpenOOD has them."""
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
    with path.open("wb") as file:
        pickle.dump(scores, file, protocol)
    return path


def save_table(path: Path, value: float, std: float | None = None) -> Path:
    """A result CSV with AUROC ``value`` and FPR@95 100 - ``value`` everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [*SETS["near"], "nearood", *SETS["far"], "farood"]
    cells = [100 - value, value, 90.0, 50.0, 76.19]
    text = [f"{cell:.2f}" + ("" if std is None else f" ± {std:.2f}") for cell in cells]
    pd.DataFrame([text] * len(rows), index=rows, columns=list(COLUMNS)).to_csv(path)
    return path


def save_search(path: Path) -> Path:
    percentiles = (60, 75, 85)
    rows = [
        {"percentile": [low, high], "k2": k2, "o": 0.05, "auroc": 90 - abs(low - 75) / 9 - high / 50 - k2}
        for low in percentiles for high in percentiles if low <= high for k2 in (0.5, 1.0)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def postprocessor_pickle(path: Path, search: object, module: str = POSTPROCESSORS) -> Path:
    """A pickled postprocessor of this package whose state is ``search`` alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    start = b"\x80\x02c" + module.encode() + b"\nAdaSCALEPostprocessor\n)\x81}U\x06search"
    path.write_bytes(start + pickle.dumps(search, 2)[2:-1] + b"sb.")
    return path


class Page(HTMLParser):
    """Collects what a page links to, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.sources, self.tags, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]

    def handle_data(self, data):
        self.text += data


def report(*words: object) -> int:
    """``openood-adascale report``; its exit status."""
    return main(["report", *map(str, words)])

"""A checkout with image lists, images that show their own number, and a run whose scores are these numbers."""

from __future__ import annotations

import os

import numpy as np
from gallery_page import save_numbered
from report_files import CIFAR10, save_scores

from openood_adascale.reporting.gather import collect

COUNTS = {"id": 60, "cifar100": 30, "tin": 20, "mnist": 20, "texture": 25, "cifar10c": 24}
FIRST = {key: 500 * place for place, key in enumerate(COUNTS)}
SIDES = {"near": ("cifar100", "tin"), "far": ("mnist", "texture")}
LABELS = np.arange(60) % 10


def write_list(data, name, lines):
    path = data / "benchmark_imglist" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    os.utime(path, (1e9, 1e9))  # older than any scores here
    return path


def labels_of(key):
    return LABELS[: COUNTS[key]] if key in ("id", "cifar10c") else np.full(COUNTS[key], -1)


def lines_of(key):
    return [f"{key}/test/{place}.png {label}" for place, label in enumerate(labels_of(key))]


def save_data(folder):
    """A checkout's data folder, whose pictures show their numbers."""
    data = folder / "OpenOOD" / "data"
    for key, count in COUNTS.items():
        for place in range(count):
            save_numbered(data / "images_classic" / key / "test" / f"{place}.png", FIRST[key] + place, 4)
        write_list(data, f"cifar10/test_{'cifar10' if key == 'id' else key}.txt", lines_of(key))
    return data


def saved(order=None):
    """What eval_ood.py saves: each image's score is its number."""
    rng = np.random.default_rng(0)

    def triple(key):
        places = np.arange(COUNTS[key]) if order is None else rng.permutation(COUNTS[key])
        scores = (FIRST[key] + places).astype(np.float32)
        return [rng.integers(0, 10, len(places)), scores, labels_of(key)[places]]

    return {
        "id": {"train": None, "val": None, "test": triple("id")},
        "csid": {"cifar10c": triple("cifar10c")},
        "ood": {"val": None, **{side: {key: triple(key) for key in keys} for side, keys in SIDES.items()}},
        "id_preds": LABELS, "id_labels": LABELS,
        "csid_preds": {"cifar10c": LABELS[:24]}, "csid_labels": {"cifar10c": LABELS[:24]},
    }  # fmt: skip


def save_run(data):
    folder = data.parent / "results" / CIFAR10
    save_scores(folder / "s0" / "scores" / "msp.pkl", saved())
    return folder


def images_of(run, data_root=None, scheme="ood"):
    (method,) = collect(run, data_root).methods[scheme]
    return method.scores[0].images

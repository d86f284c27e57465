"""A small network, YAML files and loaders for the tests of our postprocessors in OpenOOD."""

from __future__ import annotations

import pickle
import weakref
from pathlib import Path

import torch
import yaml
from tiny import HEAD

PAIRS = [[60, 70], [80, 85], [65, 95]]
ID_VAL_AND_OOD_VAL = (72, 40)  # images of openood_bench's benchmark


def write_yml(folder: Path, name: str, packaged: Path, **changes) -> Path:
    """A yml like ``packaged`` in a config root of its own; ``sweep=`` replaces its sweep, the rest its settings."""
    config = yaml.safe_load(packaged.read_text())["postprocessor"]
    for key in ("APS_mode", "postprocessor_sweep"):
        if key in changes:
            config[key] = changes.pop(key)
    config["postprocessor_args"] = {**config["postprocessor_args"], **changes}
    path = folder / "postprocessors" / f"{name}.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"postprocessor": {**config, "name": name}}, sort_keys=False))
    return path


seen_images: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""Number of images that each network was given."""
LOOKED_AT = HEAD + 2
"""Images that go through a network with ``return_feature`` while its head is looked for."""


class SmallNet(torch.nn.Module):
    """Fast, with what OpenOOD's wrappers expect; counts the images it is given."""

    feature_size = 128

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = torch.nn.Conv2d(3, 32, 5, 4)
            self.fc = torch.nn.Linear(128, 10)

    @property
    def images(self) -> int:
        """How many it was given."""
        return seen_images.get(self, 0)

    @images.setter
    def images(self, count: int) -> None:
        seen_images[self] = count

    def forward(self, images, return_feature=False):
        self.images += len(images)
        feature = torch.nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1)
        logits = self.fc(feature)
        return (logits, feature) if return_feature else logits

    def get_fc_layer(self):
        return self.fc


def batches(count: int, seed: int) -> list:
    """A loader of which nothing tells what it yields."""
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return [{"data": images, "label": torch.arange(count) % 10}]


def loaders_of(images: int, seed: int) -> tuple[dict, dict]:
    return {"val": batches(images, seed), "test": batches(30, seed + 1)}, {"val": batches(20, seed + 2)}


def through_file(postprocessor, path: Path):
    """Pickled and loaded as eval_ood.py does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        pickle.dump(postprocessor, f, pickle.HIGHEST_PROTOCOL)
    with open(path, "rb") as f:
        return pickle.load(f)

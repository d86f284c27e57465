"""A data set of one's own: images in folders, and a yml that describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml


class Scaled:
    """A transform that other processes find."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __repr__(self) -> str:
        return f"Scaled({self.by})"

    def __call__(self, image: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 * self.by


def picture(path: Path, shade: int = 100, size: tuple[int, int] = (8, 8)) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 255 - shade, shade // 2)).save(path)
    return path


def write_images(folder: Path) -> None:
    """Three classes of two images in train, val and test; two OOD sets; one image in each, where it is not said."""
    shade = 0
    for split in ("train", "val", "test"):
        for name in ("cat", "dog", "old horse"):
            for number in range(2):
                shade += 7
                picture(folder / "images" / split / name / f"{number}.png", shade)
    for number, name in enumerate(("birds", "textures", "unknown val")):
        picture(folder / "images" / name / "a 1.png", 200 + 10 * number)


def description() -> dict[str, Any]:
    """Of :func:`write_images`, with relative paths."""
    return {
        "name": "mine",
        "classes": 3,
        "preprocessing": "cifar10",
        "id": {split: f"images/{split}" for split in ("train", "val", "test")},
        "ood": {
            "val": "images/unknown val",
            "near": {"birds": "images/birds"},
            "far": {"textures": "images/textures"},
        },
    }


def write_yml(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


NEAR, FAR = ("cifar100", "tin"), ("mnist", "svhn", "texture", "places365")


def listed(checkout, name):
    """One of OpenOOD's lists in its benchmark cifar10."""
    data = checkout / "data"
    return {"images": str(data / "benchmark_imglist/cifar10" / name), "root": str(data / "images_classic")}


def openood_description(checkout):
    """OpenOOD's cifar10, under another name."""
    return {
        "name": "my-digits",
        "classes": 10,
        "preprocessing": "cifar10",
        "id": {split: listed(checkout, f"{split}_cifar10.txt") for split in ("train", "val", "test")},
        "csid": {"cifar10c": listed(checkout, "test_cifar10c.txt")},
        "ood": {
            "val": listed(checkout, "val_tin.txt"),
            "near": {name: listed(checkout, f"test_{name}.txt") for name in NEAR},
            "far": {name: listed(checkout, f"test_{name}.txt") for name in FAR},
        },
    }

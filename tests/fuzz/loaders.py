"""Loaders: the ways in which images come in batches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


def loader_of(rng: random.Random, images: Tensor) -> Any:
    """The images in batches of several kinds and sizes; and of the ways in which loaders hand them on."""
    sizes, start, batches = rng.choice([[1], [3], [len(images)], [1, 5, 2], [7]]), 0, []
    while start < len(images):
        size = sizes[len(batches) % len(sizes)]
        batches.append(images[start : start + size])
        start += size
    if rng.random() < 0.15:
        batches.insert(rng.randrange(len(batches) + 1), images[:0])
    kind = rng.choice(["images", "pairs", "dicts", "iterator", "names"])
    if kind == "dicts":
        return [
            {"data": batch, "label": torch.arange(len(batch)), "image_name": ["x"] * len(batch)}
            for batch in batches
        ]
    if kind == "pairs":
        return [(batch, torch.zeros(len(batch))) for batch in batches]
    if kind == "names":
        return tuple([batch, ["a.png"] * len(batch), None] for batch in batches)
    return _Once(batches) if kind == "iterator" else batches


class _Once:
    """Can be read as often as one likes, but tells no length."""

    def __init__(self, batches: list[Tensor]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._batches)


class Images(Dataset[Any]):
    """As a data set of images without labels."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]


def batches_of(loader: Any) -> list[Tensor]:
    """The images of each batch that has some."""
    found = []
    for batch in loader:
        images = (
            batch["data"]
            if isinstance(batch, dict)
            else batch[0]
            if isinstance(batch, list | tuple)
            else batch
        )
        if len(images):
            found.append(images)
    return found

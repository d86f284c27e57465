"""A loader's data set: whether its images are the same each time, and reading them without disturbing anyone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from .batch import unpack

PROBED = 8
"""Images that are read twice, to see whether reading them is deterministic."""


def random_states() -> Callable[[], None]:
    """What puts the global random states of Python, NumPy and torch's CPU back to what they are now."""
    # Others' code draws from NumPy's old global state, too.
    pythons, numpys = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    torchs = torch.random.get_rng_state()

    def put_back() -> None:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002
        torch.random.set_rng_state(torchs)

    return put_back


@contextmanager
def undisturbed() -> Iterator[None]:
    """The global random states of Python, NumPy and torch's CPU are afterwards as they were."""
    put_back = random_states()
    try:
        yield
    finally:
        put_back()


def is_deterministic(dataset: Any, first: Any) -> bool:
    """Whether reading an image of ``dataset`` gives the same each time, as far as reading some of them twice shows.

    Args:
        first: takes a sample and gives its image as a tensor.
    """
    count = len(dataset)
    chosen = sorted({int(place) for place in np.linspace(0, count - 1, min(count, PROBED))})
    with undisturbed():
        for index in chosen:
            torch.manual_seed(index)
            before = _random_states()
            one: Tensor = first(dataset[index])
            # Whoever draws random numbers may well use them, even if not on this image.
            if _random_states() != before:
                return False
            for seed in (1, 2):
                torch.manual_seed(seed + 1000 * index)
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002
                other: Tensor = first(dataset[index])
                if one.shape != other.shape or not torch.equal(one, other):
                    return False
    return True


def _random_states() -> tuple[Any, ...]:
    numpys: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return (
        torch.random.get_rng_state().numpy().tobytes(),
        random.getstate(),
        numpys["state"]["key"].tobytes(),
        numpys["state"]["pos"],
        numpys["has_gauss"],
    )


def image_of(sample: Any) -> Tensor:
    with undisturbed():
        return unpack(data.default_collate([sample]))[0]


def some_images(dataset: Any) -> Tensor:
    samples = [dataset[0], dataset[len(dataset) - 1]]
    with undisturbed():
        try:
            return unpack(data.default_collate(samples))[0]
        except RuntimeError:  # of different sizes
            return unpack(data.default_collate(samples[:1]))[0]


def in_words(dataset: Any) -> str:
    """A data set in a few words, for people."""
    while isinstance(dataset, data.Subset):
        dataset = dataset.dataset
    where = (
        getattr(dataset, "imglist_pth", None)
        or getattr(dataset, "root", None)
        or getattr(dataset, "name", "")
    )
    first = (getattr(dataset, "imglist", None) or [""])[0].split(" ", 1)[0]
    return " ".join(filter(None, [type(dataset).__name__, str(where), first]))


class Numbers(data.Dataset[int]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


def loader_over(loader: Any, indices: Sequence[int]) -> data.DataLoader[Any]:
    """The same images in this order; without drawing on the global random state."""
    count = -(-len(indices) // (loader.batch_size or 1))
    workers = (
        min(loader.num_workers, count) if count > 1 else 0
    )  # to start one takes longer than to read a few images
    return data.DataLoader(
        data.Subset(loader.dataset, indices),
        batch_size=loader.batch_size,
        num_workers=workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout if workers else 0,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if workers else None,
        generator=torch.Generator(),
    )

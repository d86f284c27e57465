"""A loader's data set: whether its images are the same each time, and reading them without disturbing anyone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from .batch import unpack
from .description import described

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
    content = _content(dataset)
    # Only the CPU's generator: torch.manual_seed would set those of the GPUs, too, which are not put back, and where
    # CUDA has not been used yet it takes some hundred times as long.
    with undisturbed():
        for index in chosen:
            torch.default_generator.manual_seed(index)
            before = global_random_state()
            one: Tensor = first(dataset[index])
            # Whoever draws random numbers may well use them, even if not on this image.
            if global_random_state() != before:
                return False
            for seed in (1, 2):
                torch.default_generator.manual_seed(seed + 1000 * index)
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002
                other: Tensor = first(dataset[index])
                if one.shape != other.shape or not torch.equal(one, other):
                    return False
    return _content(dataset) == content  # a generator of its own would be another now


def _content(dataset: Any) -> str | None:
    try:
        return described(vars(dataset))
    except Exception:
        return None


def global_random_state() -> tuple[Any, ...]:
    """Those of Python, NumPy and torch's CPU, to compare."""
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


@dataclass
class Recipe:
    """How a loader makes batches of a data set's images: what another process needs to make the same ones."""

    dataset: Any
    collate_fn: Any
    worker_init_fn: Any
    pin_memory: bool
    timeout: float
    context: Any = None
    """Of multiprocessing; another process has its own."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "context": None}

    def loader(self, batches: Sequence[list[int]], workers: int) -> data.DataLoader[Any]:
        """Over these images, in this order; without drawing on the global random state."""
        # To start a process takes longer than to read a few images.
        workers = min(workers, len(batches)) if len(batches) > 1 else 0
        return data.DataLoader(
            self.dataset,
            batch_sampler=batches,
            collate_fn=self.collate_fn,
            num_workers=workers,
            pin_memory=self.pin_memory,
            timeout=self.timeout if workers else 0,
            worker_init_fn=self.worker_init_fn,
            multiprocessing_context=self.context if workers else None,
            generator=torch.Generator(),
        )


def recipe_of(loader: Any) -> Recipe | None:
    """How a loader makes its batches; None where it is not PyTorch's own, or not over numbered images."""
    if type(loader) is not data.DataLoader or loader.batch_sampler is None:
        return None
    if isinstance(loader.dataset, data.IterableDataset):
        return None
    return Recipe(
        loader.dataset,
        loader.collate_fn,
        loader.worker_init_fn,
        loader.pin_memory,
        loader.timeout,
        loader.multiprocessing_context,
    )


def batches_of(loader: Any) -> Iterator[list[int]]:
    """Which images a loader's batches would have, in its order; draws random numbers as the loader does."""
    return iter(
        data.DataLoader(
            Numbers(len(loader.dataset)),
            batch_sampler=loader.batch_sampler,
            collate_fn=list,
            generator=loader.generator,
        )
    )

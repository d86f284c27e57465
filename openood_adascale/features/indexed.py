"""Passes over the images of a dataset by their index, in this process or on the workers of a pool."""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from ..errors import NotFiniteError, SettingError
from ..parallel import SharedObject, content_key, current_pool, reader_processes
from .extractor import FeatureExtractor, InferenceSettings
from .head import LinearHead
from .loading import file_names, unpack
from .statistics import Features, Perturbation

BATCHES_PER_PIECE = 8
"""Batches in a piece of work for a worker, at most."""
WORKERS_VARIABLE = "OPENOOD_ADASCALE_WORKERS"
"""Environment variable: processes that read images, instead of the loader's ``num_workers``."""
Batches = Sequence[tuple[int, ...]]
"""Dataset indices of each batch."""
Reduce = Callable[[Features, np.ndarray], Any]
"""Reduces the features, on the network's device, and (B,) labels of a batch to a result in main memory."""


class PassInfo(NamedTuple):
    """Properties of a network and the first images of a pass."""

    head: LinearHead
    images: Tensor  # two at most
    uncacheable: str  # reason why features of this network are not cached (empty if they are)


def run_pass(
    extractor: FeatureExtractor,
    source: IndexedLoader,
    batches: Batches,
    perturbations: Sequence[Perturbation],
    inference: InferenceSettings,
    reduce: Reduce,
) -> Iterator[tuple[PassInfo, Any]]:
    """Yield the result of ``reduce`` for each batch, in order, computed by this process or by the pool in use.

    Raises:
        NotFiniteError: NaN or infinity; names the images by their index and, if known, file.
        ValueError: The loader's ``collate_fn`` changes the number of images.
        WorkerLostError: The same images killed three workers; names them.
    """
    pool = current_pool()
    arguments = perturbations, inference, reduce
    if pool.workers == 1 or len(batches) == 1:
        yield from _run(extractor, source, batches, *arguments)
        return
    # Several batches in a piece, so that images are read ahead, and enough pieces for all workers.
    size = max(1, min(BATCHES_PER_PIECE, len(batches) // (4 * pool.workers)))
    pieces = [(start == 0, batches[start : start + size]) for start in range(0, len(batches), size)]
    shared = {
        "extractor": SharedObject(content_key("network", extractor), extractor),
        "dataset": SharedObject(f"dataset {uuid.uuid4().hex}", source),
    }
    infos: list[PassInfo] = []
    function = functools.partial(_run_piece, arguments)
    for found, results in pool.map(function, pieces, shared, lambda piece: describe_images(piece[1])):
        if found is not None:
            infos.append(found)
        for result in results:
            yield infos[0], result


def describe_images(batches: Batches) -> str:
    """Return the name of a piece of work in errors."""
    indices = [index for batch in batches for index in batch]
    return f"images {min(indices)} to {max(indices)} of the dataset ({len(indices)} images, counted from 0)"


def _run_piece(
    arguments: Any, shared: Mapping[str, Any], piece: tuple[bool, Batches]
) -> tuple[PassInfo | None, list[Any]]:
    """Run a piece on a worker."""
    is_first, batches = piece
    found = list(_run(shared["extractor"], shared["dataset"], batches, *arguments))
    return found[0][0] if is_first else None, [result for _, result in found]


def _run(
    extractor: FeatureExtractor,
    source: IndexedLoader,
    batches: Batches,
    perturbations: Sequence[Perturbation],
    inference: InferenceSettings,
    reduce: Reduce,
) -> Iterator[tuple[PassInfo, Any]]:
    info: PassInfo | None = None
    for indices, batch in zip(batches, source.loader(batches), strict=True):
        images, labels = unpack(batch)
        if len(labels) != len(indices):
            raise ValueError(f"loader: its collate_fn made {len(labels)} images of {len(indices)}")
        try:
            features = extractor.extract(images, perturbations, inference)
        except NotFiniteError as error:
            raise error.located(list(indices), file_names(batch)) from None
        if info is None:
            uncacheable = "" if extractor.split is None else extractor.split.uncacheable
            info = PassInfo(features.head.to("cpu"), images[:2].cpu(), uncacheable)
        yield info, reduce(features, labels)


class IndexedLoader:
    """Everything needed to read images of a dataset by index in another process, in batches as a given loader makes them.

    Args:
        loader: PyTorch's own ``DataLoader`` over an indexed dataset.
    """

    def __init__(self, loader: data.DataLoader[Any]) -> None:
        self.dataset: Any = loader.dataset
        self.batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 32
        chosen = chosen_workers()
        self.num_workers = loader.num_workers if chosen is None else chosen
        self._collate: Any = loader.collate_fn
        self._pin_memory = loader.pin_memory
        self._workers = {"worker_init_fn": loader.worker_init_fn, "timeout": loader.timeout}
        self._context: Any = loader.multiprocessing_context

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_context": None}

    @classmethod
    def of(cls, loader: Any) -> IndexedLoader | None:
        """Return the parts of PyTorch's own ``DataLoader`` over an indexed dataset (None for other loaders)."""
        indexed = type(loader) is data.DataLoader and loader.batch_sampler is not None
        return cls(loader) if indexed and not isinstance(loader.dataset, data.IterableDataset) else None

    def loader(self, batches: Batches) -> data.DataLoader[Any]:
        """Return a loader of these batches; it draws nothing from the global random state."""
        # Starting a process takes longer than reading a few images.
        workers = min(reader_processes(self.num_workers), len(batches)) if len(batches) > 1 else 0
        options = {**self._workers, "multiprocessing_context": self._context} if workers else {}
        return data.DataLoader(
            self.dataset,
            batch_sampler=[list(batch) for batch in batches],
            collate_fn=self._collate,
            pin_memory=self._pin_memory,
            num_workers=workers,
            generator=torch.Generator(),
            **options,
        )

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images of one batch, read in this process."""
        return unpack(self._collate([self.dataset[index] for index in indices]))[0]


def loader_batches(loader: Any) -> list[tuple[int, ...]]:
    """Return the dataset indices of a loader's batches in its order, drawing random numbers as the loader does."""
    indices: Any = range(len(loader.dataset))
    batches = data.DataLoader(
        indices, batch_sampler=loader.batch_sampler, collate_fn=tuple, generator=loader.generator
    )
    return list(batches)


def chosen_workers() -> int | None:
    """Return ``OPENOOD_ADASCALE_WORKERS`` (None if unset); raise SettingError if it is not an integer from 0 on."""
    text = os.environ.get(WORKERS_VARIABLE, "").strip()
    if text and not text.isdecimal():
        raise SettingError(WORKERS_VARIABLE, text, "a whole number from 0 on")
    return int(text) if text else None

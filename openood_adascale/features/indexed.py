"""Features of images by their index in a dataset, in this process or on the workers of a pool."""

from __future__ import annotations

import functools
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from ..errors import NotFiniteError, SettingError
from ..parallel import SharedObject, content_key, current_pool, reader_processes
from .extractor import FeatureExtractor, Features, InferenceSettings
from .head import LinearHead
from .loading import file_names, unpack
from .statistics import Perturbation

BATCHES_PER_PIECE = 8
"""Batches in a piece of work for a worker, at most."""
WORKERS_VARIABLE = "OPENOOD_ADASCALE_WORKERS"
"""Environment variable: processes that read images, instead of the loader's ``num_workers``."""


class PassInfo(NamedTuple):
    """Properties of a network and of the first images of a pass."""

    head: LinearHead | None
    """The head (None from the second piece of a pass on)."""
    size: int
    """D."""
    images_digest: str
    """Digest of the first images, if asked for."""
    uncacheable: str
    """Reason why features of this network are not cached (empty if they are)."""
    volatile_buffers: frozenset[str]
    """Buffers that a forward pass changes."""


@dataclass(frozen=True)
class IndexedPass:
    """A pass over batches of dataset indices.

    Args:
        batches: Dataset indices of each batch.
        perturbations: Perturbed inputs.
        inference: Inference settings.
        plain: False if z and a are known already; see :meth:`~.extractor.FeatureExtractor.extract`.
        digested: Number of images whose digest :class:`PassInfo` carries.
    """

    batches: tuple[tuple[int, ...], ...]
    perturbations: tuple[Perturbation, ...]
    inference: InferenceSettings
    plain: bool = True
    digested: int = 0


Reduce = Callable[[Features, np.ndarray], Any]
"""Turns the features, on the network's device, and (B,) labels of a batch into what is kept of them, in main memory."""


def run_pass(
    extractor: FeatureExtractor, source: IndexedLoader, work: IndexedPass, reduce: Reduce
) -> Iterator[tuple[PassInfo, Any]]:
    """Yield what ``reduce`` returns for each batch, in order, computed by this process or by the pool in use.

    Raises:
        NotFiniteError: NaN or infinity; names the images by their index and, if known, file.
        ValueError: The loader's ``collate_fn`` changes the number of images.
        WorkerLostError: The same images killed three workers; names them.
    """
    pool = current_pool()
    if pool.workers == 1 or len(work.batches) == 1:
        yield from _run(extractor, source, work, reduce)
        return
    pieces = _pieces(work, pool.workers)
    shared = {
        "extractor": SharedObject(content_key("network", extractor), extractor),
        "dataset": SharedObject(f"dataset {uuid.uuid4().hex}", source),
    }
    infos: PassInfo | None = None
    for info, results in pool.map(functools.partial(_run_piece, reduce), pieces, shared, _describe_piece):
        infos = infos or info
        extractor.volatile_buffers |= infos.volatile_buffers
        for result in results:
            yield infos, result


class _Piece(NamedTuple):
    number: int
    work: IndexedPass


def _pieces(work: IndexedPass, workers: int) -> list[_Piece]:
    """Split a pass into pieces of several batches, so that images are read ahead, and enough of them for all workers."""
    count = len(work.batches)
    size = max(1, min(BATCHES_PER_PIECE, count // (4 * workers)))
    return [
        _Piece(
            number,
            replace(
                work,
                batches=work.batches[start : start + size],
                digested=work.digested if number == 0 else 0,
            ),
        )
        for number, start in enumerate(range(0, count, size))
    ]


def _describe_piece(piece: _Piece) -> str:
    indices = [index for batch in piece.work.batches for index in batch]
    return f"images {min(indices)} to {max(indices)} of the dataset ({len(indices)} images, counted from 0)"


def _run_piece(reduce: Reduce, shared: Mapping[str, Any], piece: _Piece) -> tuple[PassInfo, list[Any]]:
    """Run a piece on a worker."""
    source = replace(shared["dataset"], num_workers=reader_processes(shared["dataset"].num_workers))
    found = list(_run(shared["extractor"], source, piece.work, reduce))
    info = found[0][0]
    return info if piece.number == 0 else info._replace(head=None), [result for _, result in found]


def _run(
    extractor: FeatureExtractor, source: IndexedLoader, work: IndexedPass, reduce: Reduce
) -> Iterator[tuple[PassInfo, Any]]:
    info: PassInfo | None = None
    for indices, batch in zip(work.batches, source.loader(work.batches), strict=True):
        images, labels = unpack(batch)
        if len(labels) != len(indices):
            raise ValueError(f"loader: its collate_fn made {len(labels)} images of {len(indices)}")
        try:
            features = extractor.extract(images, work.perturbations, work.inference, work.plain)
        except NotFiniteError as error:
            raise error.located(list(indices), file_names(batch)) from None
        if info is None:
            digest = digest_of_images(images[: work.digested]) if work.digested else ""
            head = features.head.to(torch.device("cpu"))
            info = PassInfo(
                head, head.weight.shape[1], digest, _uncacheable(extractor), extractor.volatile_buffers
            )
        yield info, reduce(features, labels)


def _uncacheable(extractor: FeatureExtractor) -> str:
    split = extractor.split
    if split is not None and split.stochastic:
        return "the network is random even in eval mode"
    if split is not None and split.batch_dependent:
        return "the network's outputs depend on the other images of the batch"
    if extractor.volatile_buffers:
        return f"a forward pass changes the network ({', '.join(sorted(extractor.volatile_buffers))})"
    return ""


def digest_of_images(images: Tensor) -> str:
    """Return a digest of a batch of images."""
    content = images.detach().cpu().contiguous()
    return hashlib.blake2b(content.view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()


@dataclass
class IndexedLoader:
    """Everything needed to read images of a dataset by index in another process, in batches as a given loader makes them."""

    dataset: Any
    collate_fn: Any
    worker_init_fn: Any
    pin_memory: bool
    timeout: float
    num_workers: int
    batch_size: int
    context: Any = None
    """Multiprocessing context; not sent to other processes."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "context": None}

    @classmethod
    def of(cls, loader: Any) -> IndexedLoader | None:
        """Return the parts of PyTorch's own ``DataLoader`` over an indexed dataset (None for other loaders)."""
        if type(loader) is not data.DataLoader or loader.batch_sampler is None:
            return None
        if isinstance(loader.dataset, data.IterableDataset):
            return None
        return cls(
            loader.dataset,
            loader.collate_fn,
            loader.worker_init_fn,
            loader.pin_memory,
            loader.timeout,
            worker_count(loader),
            loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 32,
            loader.multiprocessing_context,
        )

    def loader(self, batches: Sequence[Sequence[int]]) -> data.DataLoader[Any]:
        """Return a loader of these batches; it draws nothing from the global random state."""
        # Starting a process takes longer than reading a few images.
        workers = min(self.num_workers, len(batches)) if len(batches) > 1 else 0
        return data.DataLoader(
            self.dataset,
            batch_sampler=[list(batch) for batch in batches],
            collate_fn=self.collate_fn,
            num_workers=workers,
            pin_memory=self.pin_memory,
            timeout=self.timeout if workers else 0,
            worker_init_fn=self.worker_init_fn,
            multiprocessing_context=self.context if workers else None,
            generator=torch.Generator(),
        )

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images of one batch, read in this process."""
        return unpack(self.collate_fn([self.dataset[index] for index in indices]))[0]


class _Indices(data.Dataset[int]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


def loader_batches(loader: Any) -> list[tuple[int, ...]]:
    """Return the dataset indices of a loader's batches in its order, drawing random numbers as the loader does."""
    batches = data.DataLoader(
        _Indices(len(loader.dataset)),
        batch_sampler=loader.batch_sampler,
        collate_fn=tuple,
        generator=loader.generator,
    )
    return list(batches)


def worker_count(loader: Any) -> int:
    """Return the number of reading processes: ``OPENOOD_ADASCALE_WORKERS`` or the loader's own.

    Raises:
        SettingError: The variable is not an integer from 0 on.
    """
    chosen = chosen_workers()
    return int(loader.num_workers) if chosen is None else chosen


def chosen_workers() -> int | None:
    """Return ``OPENOOD_ADASCALE_WORKERS`` (None if unset).

    Raises:
        SettingError: It is not an integer from 0 on.
    """
    text = os.environ.get(WORKERS_VARIABLE, "").strip()
    if text and not text.isdecimal():
        raise SettingError(WORKERS_VARIABLE, text, "a whole number from 0 on")
    return int(text) if text else None


@functools.cache
def library_versions() -> str:
    """Return the versions of the libraries that decode images and run networks."""
    import importlib.metadata

    found = []
    for name in ("torch", "torchvision", "pillow", "opencv-python-headless", "numpy"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)

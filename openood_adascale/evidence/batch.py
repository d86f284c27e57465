"""A loader's batches: which images, which labels, which files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm


def watched(loader: Iterable[Any], progress: bool | None, description: str) -> Iterator[Any]:
    """A loader's batches, with a bar that counts images: True or False shows or hides it, None shows it in a terminal."""
    # tqdm.auto itself would begin the loader twice, with its workers and its random draws.
    with tqdm(total=_images_of(loader), desc=description, unit="image", disable=hidden(progress)) as bar:
        for batch in loader:
            yield batch
            bar.update(_size(batch))


def _images_of(loader: Iterable[Any]) -> int | None:
    """How many images a loader yields, where that shows."""
    if isinstance(loader, list | tuple):
        return sum(map(_size, loader))
    try:
        known: Any = loader
        count, size, drops = len(known.sampler), known.batch_size, known.drop_last
    except (AttributeError, TypeError, NotImplementedError):  # no DataLoader, or one over a stream
        return None
    return count - count % size if drops and size else count


def _size(batch: Any) -> int:
    images = batch.get("data") if isinstance(batch, Mapping) else batch
    if isinstance(images, list | tuple) and images and not isinstance(images[0], str):
        images = images[0]
    return len(images) if isinstance(images, Sized) else 0


def hidden(progress: bool | None) -> bool | None:
    """tqdm's ``disable`` for a ``progress`` that is True, False or, in a terminal, None."""
    return None if progress is None else not progress


def image_names(batch: Any) -> list[str]:
    """The files of a batch's images, where it tells them as OpenOOD's do."""
    names = batch.get("image_name") if isinstance(batch, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def unpack(batch: Any) -> tuple[Tensor, np.ndarray]:
    """Images and labels of a loader's batch: OpenOOD's dict, ``(images, labels, …)`` or the images alone.

    Labels that are not there, or are not one whole number per image, become −1.
    """
    labels = None
    if isinstance(batch, Mapping):
        if "data" not in batch:
            raise TypeError(
                f"loader: its batches are mappings with {sorted(batch)}; expected 'data' (and 'label')"
            )
        images, labels = batch["data"], batch.get("label")
    elif isinstance(batch, tuple | list):
        if not batch:
            raise TypeError(
                f"loader: one of its batches is {batch!r}; expected images, or (images, labels, …)"
            )
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
    else:
        images = batch
    if not hasattr(images, "__len__"):
        raise TypeError(f"loader: {type(images).__name__} is not allowed; expected batches of images")
    return images, _classes(labels, len(images))


def _classes(labels: Any, count: int) -> np.ndarray:
    unknown = np.full(count, -1)
    try:
        given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels).reshape(count)
    except (TypeError, ValueError):
        return unknown
    if given.dtype.kind not in "iuf":
        return unknown
    with np.errstate(invalid="ignore"):
        whole = given.astype(np.int64)
    # A fraction, NaN, or a number that int64 cannot hold comes back as another.
    return whole if (whole == given).all() else unknown

"""Batches of a data loader: images, labels, file names, progress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

IMAGES = ("data", "image", "images", "img", "pixel_values")
"""Keys of the images in a batch that is a mapping: OpenOOD's, and those of Hugging Face datasets."""
LABELS = ("label", "labels")
UNLABELLED = -1
_NOT_LABELS = int(np.iinfo(np.int64).min)
NOT_LABELS = {
    _NOT_LABELS: "vectors (one-hot, or several numbers per image)",
    _NOT_LABELS + 1: "words",
    _NOT_LABELS + 2: "fractions, NaN or infinity",
    _NOT_LABELS + 3: "another number of labels than of images",
    _NOT_LABELS + 4: "neither numbers nor words",
}
"""Codes that :func:`unpack` returns for labels that are no classes, and their descriptions."""


def progress_over(loader: Iterable[Any], progress: bool | None, description: str) -> Iterator[Any]:
    """Yield a loader's batches under a progress bar that counts images."""
    # Iterating over tqdm(loader) itself would start the loader twice, with its workers and random draws.
    sampler = getattr(loader, "sampler", None)
    total = len(sampler) if isinstance(sampler, Sized) else None
    with tqdm(total=total, desc=description, unit="image", disable=is_hidden(progress)) as bar:
        for batch in loader:
            yield batch
            bar.update(_batch_length(batch))


def is_hidden(progress: bool | None) -> bool | None:
    """Return tqdm's ``disable`` for ``progress``: True, False or, to show it in a terminal, None."""
    return None if progress is None else not progress


def _batch_length(batch: Any) -> int:
    images = _first_of(batch, IMAGES) if isinstance(batch, Mapping) else batch
    if isinstance(images, list | tuple) and images and not isinstance(images[0], str):
        images = images[0]
    return len(images) if isinstance(images, Sized) else 0


def _first_of(batch: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((batch[key] for key in keys if key in batch), None)


def file_names(batch: Any) -> list[str]:
    """Return the file names in one of OpenOOD's batches (empty for others)."""
    names = batch.get("image_name") if isinstance(batch, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def unpack(batch: Any) -> tuple[Tensor, np.ndarray]:
    """Return images and (B,) int64 labels of a batch.

    Labels are ignored by most callers, so that any are accepted here. Missing ones become −1, and ones that are not one
    integer per image a code of :data:`NOT_LABELS`. Bools are 0 and 1; floats without fractions are integers.

    Args:
        batch: ``(images, labels, …)``, images alone, or a mapping with one of :data:`IMAGES` and perhaps
            :data:`LABELS`.

    Raises:
        TypeError: A batch of another form.
    """
    images, labels = batch, None
    if isinstance(batch, Mapping):
        images, labels = _first_of(batch, IMAGES), _first_of(batch, LABELS)
        if images is None:
            raise TypeError(
                f"loader: its batches are mappings with {sorted(map(str, batch))}; expected one of {', '.join(IMAGES)} "
                f"(and of {', '.join(LABELS)})"
            )
    elif isinstance(batch, tuple | list) and batch:
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
    if not isinstance(images, Tensor) and (images is batch or not hasattr(images, "__len__")):
        raise TypeError(
            f"loader: one of its batches holds {type(images).__name__}; expected images, or (images, labels, …)"
        )
    return images, _labels(labels, len(images))


def plain_labels(labels: np.ndarray) -> np.ndarray:
    """Return labels with −1 for the codes of :data:`NOT_LABELS`."""
    return np.where(labels <= max(NOT_LABELS), UNLABELLED, labels)


def _labels(labels: Any, count: int) -> np.ndarray:
    code = None
    if labels is None:
        return np.full(count, UNLABELLED)
    try:
        given = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    except (TypeError, ValueError, RuntimeError):
        return np.full(count, _NOT_LABELS + 4)
    kind = given.dtype.kind
    if given.size and kind == "O" and all(label is None for label in given.flat):
        code = UNLABELLED
    elif given.size and kind in "US":
        code = _NOT_LABELS + 1
    elif kind not in "iufb":
        code = _NOT_LABELS + 4
    elif given.size != count:
        code = _NOT_LABELS + (0 if given.ndim > 1 and len(given) == count else 3)
    if code is not None:
        return np.full(count, code)
    given = given.reshape(count)
    with np.errstate(invalid="ignore"):
        whole = given.astype(np.int64)
        # A fraction, NaN, or a number beyond int64 comes back as another.
        exact = (whole == given) & (whole > max(NOT_LABELS))
    return np.where(exact, whole, _NOT_LABELS + 2)

"""What is known of each image of a set beside its scores: its file, its label, its predicted class. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import SettingError


@dataclass(frozen=True)
class PerImage:
    """N images of a set, in the order of its scores.

    >>> images = evaluate(AdaSCALE(network), benchmark, progress=False).images["textures"]
    >>> len(images), images.predictions.shape, images.percentiles.shape
    (20, (20,), (20,))
    """

    labels: np.ndarray
    """(N,) int64, −1 where unknown."""
    predictions: np.ndarray
    """(N,) int64, the network's predicted classes (a postprocessor's: its own); −1 where unknown."""
    paths: Sequence[str] = ()
    """Their files; none where it is not known for certain which score is of which file."""
    unknown: str = ""
    """Why there are no paths."""
    percentiles: np.ndarray | None = None
    """(N,) float64: the adaptive percentile p of each, of a method that has one (AdaSCALE); in percent."""

    def __len__(self) -> int:
        return len(self.labels)


def joined(parts: Sequence[PerImage]) -> PerImage:
    """Several loaders' images as one set; without paths where one of them has none."""
    if len(parts) == 1:
        return parts[0]
    unknown = next(
        (part.unknown or "one of its loaders tells no files" for part in parts if not part.paths), ""
    )
    percentiles = [part.percentiles for part in parts if part.percentiles is not None]
    return PerImage(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.predictions for part in parts]),
        () if unknown else tuple(path for part in parts for path in part.paths),
        unknown,
        np.concatenate(percentiles) if len(percentiles) == len(parts) else None,
    )


def whole(values: object, count: int) -> np.ndarray:
    """Labels or predictions as (N,) int64; −1 for all where these are no N whole numbers."""
    try:
        array = np.asarray(values)
    except Exception:  # a tensor on another device, say
        return np.full(count, -1, np.int64)
    if array.shape != (count,) or array.dtype.kind not in "iub":
        return np.full(count, -1, np.int64)
    return array.astype(np.int64)


def class_names_in(file: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the classes 0, 1, … from a text file, one a line.

    Raises:
        SettingError: it cannot be read as text, or has an empty line between others.
    """
    try:
        names = [name.strip() for name in Path(file).read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            "classes", os.fspath(file), f"a text file in UTF-8, a name a line ({error})"
        ) from error
    if not all(names):
        raise SettingError(
            "classes", os.fspath(file), f"a name in each line; line {names.index('') + 1} has none"
        )
    return tuple(names)

"""Detectors as safetensors files.

A file holds the fitted tensors and the validation scores, and one JSON document with format, method, settings, the
fingerprint of the weights and a checksum. Reading executes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..errors import DetectorFileError
from ..features.files import read_tensors, write_tensors

FORMAT = 5
_KEY = "openood_adascale_detector"


@dataclass
class SavedDetector:
    """Content of a detector's file."""

    method: str  # module:class of the detector
    settings: dict[str, Any]
    weights: dict[str, str]  # fingerprint of each tensor of the network
    state: Any  # None, a tensor, or a dict of tensors
    validation_scores: np.ndarray | None  # (n_val,) float64, ascending
    notes: dict[str, Any]  # anything else that JSON can hold, for example class names


def write_detector(path: str | os.PathLike[str], saved: SavedDetector) -> None:
    """Write a detector's file atomically.

    Raises:
        DetectorFileError: The file cannot be written.
        TypeError: The state holds something else than tensors.
    """
    place = Path(path).expanduser()
    versions = {"openood_adascale": __version__, "torch": torch.__version__}
    content = {**vars(saved), "format": FORMAT, "versions": versions}
    state, scores = content.pop("state"), content.pop("validation_scores")
    tensors = (
        {f"state.{key}": value for key, value in state.items()}
        if isinstance(state, Mapping)
        else {"state": state}
    )
    tensors["validation_scores"] = None if scores is None else torch.tensor(scores)
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise TypeError(f"state: {state!r} cannot be saved; expected None, a tensor, or a dict of tensors")
    try:
        write_tensors(place, _KEY, content, tensors)
    except OSError as error:
        raise DetectorFileError(
            f"{place}: it cannot be written: {error.strerror or error}; expected a file name in an existing, writable "
            "directory"
        ) from error


def read_detector(path: str | os.PathLike[str]) -> SavedDetector:
    """Read a detector's file.

    Raises:
        DetectorFileError: No file, damaged, another version's, or something else.
    """
    try:
        content, tensors, is_intact = read_tensors(Path(path).expanduser(), _KEY)
        if content.get("format") != FORMAT:
            raise DetectorFileError(
                f"{os.fspath(path)}: it has format {content.get('format')!r} of another version of this package; expected "
                f"{FORMAT}. Fit the detector and save it again"
            )
        if not is_intact:
            raise ValueError("its content does not match its checksum")
        del content["format"], content["versions"]
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # the file may be replaced
        scores = tensors.pop("validation_scores", None)
        state: Any = {name.removeprefix("state."): tensor for name, tensor in tensors.items()}
        return SavedDetector(
            **content,
            state=tensors.get("state", state or None),
            validation_scores=None if scores is None else scores.numpy(),
        )
    except DetectorFileError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(path, error) from error


def damaged(path: str | os.PathLike[str], error: Exception) -> DetectorFileError:
    """Return the error for a file that cannot be used because of ``error``."""
    return DetectorFileError(
        f"{os.fspath(path)}: missing, damaged, edited, or not a detector's file ({error}); expected a file written by "
        "detector.save(path)"
    )

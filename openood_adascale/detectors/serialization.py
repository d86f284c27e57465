"""Detectors as safetensors files.

A file holds the fitted tensors and the validation scores, and one JSON document with format, method, settings, the
fingerprint of the weights and a checksum. Reading executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import __version__
from ..errors import DetectorFileError
from ..io import replacing

FORMAT = 4
_KEY = "openood_adascale_detector"
_EXPECTED = "expected a file written by detector.save(path)"


@dataclass
class SavedDetector:
    """Content of a detector's file."""

    method: str  # module:class of the detector
    settings: dict[str, Any]
    weights: dict[str, str]  # fingerprint of each tensor of the network
    volatile: list[str]  # buffers that the fingerprint leaves out
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
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content["checksum"] = _checksum(content, tensors)
    # A single key: safetensors writes several in no fixed order.
    written = save(tensors, {_KEY: json.dumps(content, sort_keys=True)})
    try:
        with replacing(place) as beside:
            beside.write_bytes(written)
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
    place = Path(path).expanduser()
    try:
        if not place.is_file():  # reading a pipe would block
            reason = "it is not a file" if place.exists() else "there is no such file"
            raise DetectorFileError(f"{place}: {reason}; {_EXPECTED}")
        with safe_open(place, "pt") as file:
            content = json.loads((file.metadata() or {}).get(_KEY, "null"))
            if not isinstance(content, dict):
                raise DetectorFileError(f"{place}: a safetensors file without a detector; {_EXPECTED}")
            if content.get("format") != FORMAT:
                raise DetectorFileError(
                    f"{place}: it has format {content.get('format')!r} of another version of this package; expected "
                    f"{FORMAT}. Fit the detector and save it again"
                )
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (not a mapping)
        if content.pop("checksum", None) != _checksum(content, tensors):
            raise ValueError("its content does not match its checksum")
        del content["format"], content["versions"]
        scores = tensors.pop("validation_scores", None)
        state: Any = {name.removeprefix("state."): tensor for name, tensor in tensors.items()}
        return SavedDetector(
            **content,
            state=tensors.get("state", state or None),
            validation_scores=None if scores is None else scores.numpy(),
        )
    except DetectorFileError:
        raise
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise damaged(path, error) from error


def damaged(path: str | os.PathLike[str], error: Exception) -> DetectorFileError:
    """Return the error for a file that cannot be used because of ``error``."""
    return DetectorFileError(
        f"{os.fspath(path)}: damaged, edited, or not a detector's file ({type(error).__name__}: {error}); {_EXPECTED}"
    )


def _checksum(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

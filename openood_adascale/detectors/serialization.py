"""Detectors as safetensors files.

A file holds the fitted tensors and the validation scores, and one JSON document with format, method, settings, the
fingerprint of the weights and a checksum. Reading executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
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

FORMAT = 3
_KEY = "openood_adascale_detector"
_SCORES = "validation_scores"
_EXPECTED = "expected a file written by detector.save(path)"


@dataclass
class SavedDetector:
    """Content of a detector's file."""

    method: str
    """``module:class`` of the detector."""
    settings: dict[str, Any]
    weights: dict[str, str]
    """Weights fingerprint; see :func:`~openood_adascale.features.fingerprint.weights_fingerprint`."""
    volatile: list[str]
    """Buffers that the fingerprint leaves out."""
    state: Any
    """Fitted state: None, a tensor, or a dict of them."""
    validation_scores: np.ndarray | None = None
    """(n_val,) float64, ascending."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Anything else that JSON can hold, for example class names."""


def write_detector(path: str | os.PathLike[str], saved: SavedDetector) -> None:
    """Write a detector's file atomically.

    Raises:
        DetectorFileError: The file cannot be written.
        TypeError: The state holds something else than tensors and dicts.
    """
    place = Path(path).expanduser()
    tensors: dict[str, Tensor] = {}
    content = {
        "format": FORMAT,
        "method": saved.method,
        "settings": saved.settings,
        "weights": saved.weights,
        "volatile": saved.volatile,
        "state": _flatten(saved.state, "state", tensors),
        "notes": saved.notes,
        "versions": {"openood_adascale": __version__, "torch": torch.__version__},
    }
    if saved.validation_scores is not None:
        tensors[_SCORES] = torch.from_numpy(saved.validation_scores.copy())
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
            state = "it is not a file" if place.exists() else "there is no such file"
            raise DetectorFileError(f"{place}: {state}; {_EXPECTED}")
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
        scores = tensors[_SCORES].numpy() if _SCORES in tensors else None
        if scores is not None and not _are_scores(scores):
            raise ValueError(f"{_SCORES}: expected finite float64 numbers, ascending, at least one")
        volatile = list(content["volatile"])
        if not all(isinstance(name, str) for name in volatile):
            raise ValueError("volatile: expected names of buffers")
        notes = content["notes"]
        return SavedDetector(
            str(content["method"]),
            dict(content["settings"]),
            dict(content["weights"]),
            volatile,
            _unflatten(content["state"], tensors),
            scores,
            notes if isinstance(notes, dict) else {},
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


def _are_scores(scores: np.ndarray) -> bool:
    known = scores.dtype == np.float64 and scores.ndim == 1 and len(scores) > 0
    return known and bool(np.isfinite(scores).all() and (np.diff(scores) >= 0).all())


def _flatten(state: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``state`` with names in place of its tensors, which are added to ``tensors``."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        while name in tensors:  # {"a.b": …, "a": {"b": …}}
            name += "'"
        tensors[name] = state.detach().cpu().clone(memory_format=torch.contiguous_format)
        return name
    if isinstance(state, Mapping) and all(isinstance(key, str) for key in state):
        return {key: _flatten(value, f"{name}.{key}", tensors) for key, value in state.items()}
    raise TypeError(f"{name}: {state!r} cannot be saved; expected tensors, or dicts of them with text keys")


def _unflatten(state: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(state, dict):
        return {key: _unflatten(value, tensors) for key, value in state.items()}
    return None if state is None else tensors[state]

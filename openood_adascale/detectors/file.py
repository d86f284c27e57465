"""A detector as a file.

It is one safetensors: the tensors that were learnt and the scores of the validation images, and as metadata one JSON
with the format, the method, its settings, the network's digest and a digest of all this. Reading executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import DetectorFileError
from ..files import replacing
from .calibration import Validation
from .registry import METHODS, Method
from .settings import Settings

if TYPE_CHECKING:
    from .base import Detector

D = TypeVar("D", bound="Detector[Any, Any]")

# To be raised, too, when the network's digest comes to be computed in another way.
FORMAT = 2
_KEY = "openood_adascale_detector"
_SCORES = "validation_scores"
_EXPECTED = "expected a file that detector.save(path) has written"


def load(path: str | os.PathLike[str], network: nn.Module) -> Detector[Any, Any]:
    """The detector that a file holds, of whichever registered method; see :meth:`.base.Detector.load`.

    >>> OptFS(network).fit(train_loader).save("optfs.safetensors")
    >>> type(load("optfs.safetensors", network)).__name__
    'OptFS'

    Raises:
        DetectorFileError: as there, or the method is not registered.
        TypeError: ``network`` is no module.
    """
    place = _place(path)
    method = _registered(name := _read(place)[0].get("method"))
    if method is None:
        raise DetectorFileError(
            f"{place}: its method {name!r} is not registered; expected one of {', '.join(METHODS)}. Load another class's "
            "file by its own load(path, network)"
        )
    return method.detector.load(place, network)


def notes_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was noted beside the detector in a file; see :func:`write`.

    Raises:
        DetectorFileError: as :func:`load`, but for what concerns a network.
    """
    notes = _read(_place(path))[0].get("notes")
    return notes if isinstance(notes, dict) else {}


def write(
    path: str | os.PathLike[str], detector: Detector[Any, Any], notes: Mapping[str, Any] | None = None
) -> None:
    """Write a detector beside ``path`` and rename it there; see :meth:`.base.Detector.save`.

    Args:
        notes: what JSON can hold, to be kept beside it.
    """
    detector.require_fit(thorough=True)
    place, reader = _place(path), detector.reader
    if detector.learnt_with is not None:  # another run may know of less that running the network changes
        reader.volatile |= detector.learnt_with.volatile
    scores = detector.validation_scores
    tensors: dict[str, Tensor] = {}
    about = {
        "format": FORMAT,
        "method": _name(type(detector), detector.settings),
        "settings": detector.settings.as_dict(),
        "network": {"digest": reader.digest(), "volatile": sorted(reader.volatile)},
        "state": _taken_apart(detector.state, "state", tensors),
        "notes": dict(notes or {}),
    }
    if scores is not None:
        tensors[_SCORES] = torch.from_numpy(scores.copy())
    about["digest"] = _digest(about, tensors)
    # One key: of several, safetensors would write the order as it comes.
    content = save(tensors, {_KEY: json.dumps(about, sort_keys=True)})
    try:
        with replacing(place) as beside:
            beside.write_bytes(content)
    except OSError as error:
        raise DetectorFileError(
            f"{place}: it cannot be written: {error.strerror or error}; expected the name of a file in a folder that is "
            "there and can be written to"
        ) from error


def read(path: str | os.PathLike[str], network: nn.Module, kind: type[D]) -> D:
    """The detector of the class ``kind`` that a file holds; see :meth:`.base.Detector.load`."""
    place = _place(path)
    about, tensors = _read(place)
    name = about.get("method")
    method = _registered(name)
    if name != _path_of(kind) and (method is None or method.detector is not kind):
        raise DetectorFileError(
            f"{place}: it holds a detector of the method {name!r}; expected {_name(kind)!r}, of {kind.__name__}. "
            "openood_adascale.detectors.file.load(path, network) takes any registered method's"
        )
    try:
        settings = _settings(about["settings"], kind)
        state = _put_together(about["state"], tensors)
        if state is None and kind.learns:
            raise ValueError(f"state: None is not allowed; expected what {kind.__name__} has learnt")
        scores = tensors[_SCORES].numpy() if _SCORES in tensors else None
        if scores is not None and not _are_scores(scores):
            raise ValueError(f"{_SCORES}: expected finite float64 numbers, ascending, one at least")
        digest, volatile = about["network"]["digest"], frozenset(about["network"]["volatile"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _unusable(place, error) from error
    detector = kind(network, settings)
    detector.reader.volatile = volatile
    if detector.reader.digest() != digest:
        raise DetectorFileError(
            f"{place}: it was made for a network with other layers or weights than this {type(network).__name__}; "
            f"expected that network, or {kind.__name__} fitted anew"
        )
    detector.state = state
    detector.has_learnt()
    if scores is not None:
        detector.validation = Validation.of(detector, scores)
    return detector


def _settings(given: Mapping[str, Any], kind: type[Detector[Any, Any]]) -> Settings:
    names = kind.settings_class.names()
    if missing := [name for name in names if name not in given]:
        # Today's defaults need not be those that it was made with.
        raise ValueError(f"settings: {', '.join(missing)} missing; expected {', '.join(names)}")
    return kind.settings_class.from_mapping(given, kind.__name__)


def _place(path: str | os.PathLike[str]) -> Path:
    return Path(path).expanduser()


def _read(place: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A file's JSON and its tensors, in memory of their own; of a known format and undamaged."""
    try:
        if not place.is_file():  # a folder, or a pipe that would be waited for
            what = "it is no file" if place.exists() else "there is no such file"
            raise DetectorFileError(f"{place}: {what}; {_EXPECTED}")
        with safe_open(place, "pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"))
            if not isinstance(about, dict):
                raise DetectorFileError(f"{place}: it is a safetensors file, but of no detector; {_EXPECTED}")
            if about.get("format") != FORMAT:
                raise DetectorFileError(
                    f"{place}: it has the format {about.get('format')!r}, of another version of this package; expected "
                    f"{FORMAT}. Fit the detector and save it again"
                )
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
        said = about.pop("digest", None)
        if said != _digest(about, tensors):
            raise ValueError("its content is not what its digest says")
        return about, tensors
    except DetectorFileError:
        raise
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise _unusable(place, error) from error


def _unusable(place: Path, error: Exception) -> DetectorFileError:
    told = f"{type(error).__name__}: {error}"
    return DetectorFileError(
        f"{place}: damaged, changed by hand, or no detector's file ({told}); {_EXPECTED}"
    )


def _digest(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _are_scores(scores: np.ndarray) -> bool:
    known = scores.dtype == np.float64 and scores.ndim == 1 and len(scores) > 0
    return known and bool(np.isfinite(scores).all() and (np.diff(scores) >= 0).all())


def _path_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _registered(name: Any) -> Method | None:
    return METHODS.get(name) if isinstance(name, str) else None


def _name(kind: type[Detector[Any, Any]], settings: Settings | None = None) -> str:
    """What a class is called in a file: by the registry, where it is there, or by where it stands."""
    chosen = {} if settings is None else settings.as_dict()
    found = [method for method in METHODS.values() if method.detector is kind]
    # Of several methods of one class the one that says most of these settings.
    found.sort(key=lambda method: -len(method.defaults))
    fitting = [method for method in found if method.defaults.items() <= chosen.items()]
    return (fitting or found)[0].name if found else _path_of(kind)


def _taken_apart(state: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``state`` with names for its tensors, which go into ``tensors``."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        while name in tensors:  # {"a.b": …, "a": {"b": …}}
            name += "'"
        tensors[name] = state.detach().cpu().clone(memory_format=torch.contiguous_format)
        return name
    if isinstance(state, Mapping) and all(isinstance(key, str) for key in state):
        return {key: _taken_apart(value, f"{name}.{key}", tensors) for key, value in state.items()}
    raise TypeError(
        f"{name}: {state!r} cannot be saved; expected tensors, or dicts of them with words as keys"
    )


def _put_together(state: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`_taken_apart`."""
    if isinstance(state, dict):
        return {key: _put_together(value, tensors) for key, value in state.items()}
    return None if state is None else tensors[state]

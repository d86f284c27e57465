"""Files of weights: read without executing anything, and loaded only if every parameter fits."""

from __future__ import annotations

import argparse
import codecs
import collections
import contextlib
import datetime
import os
import pathlib
import re
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import SettingError
from ..features.network import original

StateDict = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
Say = Callable[[str], Any]
"""Function that prints a line."""
ENTRIES = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params",
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher", "student",
)  # fmt: skip
"""Entries of a checkpoint that hold weights, perhaps nested; the first one is read."""
PREFIXES = (
    "module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "head.", "ema.", "_model.",
)  # fmt: skip
"""Prefixes of parameter names that wrappers and training scripts add."""
SHOWN = 5
"""Names of parameters in an error, of each kind."""
_TORCH = (b"PK", b"\x80")
_OTHERS = {
    r"\Z": "it is empty",
    r"version https://git-lfs": "it is a Git LFS pointer to one, which `git lfs pull` replaces by the file",
    r"<(!doctype|html|\?xml|head)": "it is an HTML page, as a failed download leaves it",
    r'\{["\s][^\0]*\Z': "it is JSON, such as an index of several files or an error of a server",
    "\x1f\x8b": "it is compressed with gzip: unpack it first",
    "\x89HDF": "it is an HDF5 file, as Keras writes them",
}
"""Beginnings of files that weights are often replaced by, as regular expressions."""


def read_state_dict(path: str | os.PathLike[str], say: Say | None = None) -> StateDict:
    """Return the weights in a file by their names there.

    The file is safetensors, or of ``torch.save``: a state dict, or a checkpoint with one of :data:`ENTRIES`. Beside weights
    it may hold plain values, NumPy scalars and arrays, paths, dates and ``argparse.Namespace``.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise _refused(name, "a file: a state dict in .pth, .pt, .ckpt or .safetensors")
    if not _is_safetensors(name):
        return _state_dict_in(_unpickled(name), name, say)
    try:
        return dict(load_file(name))
    except (SafetensorError, OSError, ValueError) as error:
        raise _refused(name, f"a whole safetensors file ({error})") from error


def _is_safetensors(name: str) -> bool:
    """Return True for safetensors, and False for a file of torch.save, by the content of a file."""
    with open(name, "rb") as file:
        start = file.read(512)
    for pattern, told in _OTHERS.items():
        if re.match(rf"\s*{pattern}", start.decode("latin-1"), re.IGNORECASE):
            raise _refused(name, f"a file of weights; {told}")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < os.path.getsize(name):
        return True
    is_torch = start.startswith(_TORCH)
    if name.lower().endswith(".safetensors"):
        told = "is a file of torch.save: its name should end in .pth" if is_torch else "does not begin as one"
        raise _refused(name, f"a whole safetensors file; it {told}")
    # Before torch 2.6 weights_only did not hold for tar archives (CVE-2025-32434), which nobody writes any more.
    if (is_tar := tarfile.is_tarfile(name)) or not is_torch:
        told = "is a tar archive" if is_tar else "does not begin as one"
        raise _refused(name, f"a whole file of torch.save; it {told}")
    return False


def _refused(name: str, allowed: str) -> SettingError:
    return SettingError("weights", name, allowed)


def _not_weights_alone(name: str, what: str) -> SettingError:
    allowed = f"a file without code; it holds {what}, and reading that would execute code. If you trust the file, write its "
    return _refused(
        name, f"{allowed}state_dict() alone: torch.save(torch.load(FILE, weights_only=False)[…], NEW)"
    )


def _harmless() -> list[Any]:
    """Return the types beside weights that may be read: building them executes nothing."""
    core: Any = getattr(np, "_core", None) or vars(np)["core"]  # NumPy 2 and 1
    found: list[Any] = [
        argparse.Namespace, types.SimpleNamespace, collections.defaultdict, np.dtype, np.ndarray, codecs.encode,
        datetime.datetime, datetime.date, datetime.timedelta, datetime.timezone,
        *(kind for kind in vars(np.dtypes).values() if isinstance(kind, type)),
    ]  # fmt: skip
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names = ("scalar", "_reconstruct")
        found += [(getattr(core.multiarray, name), f"{module}.{name}") for name in names]
    posix, windows = pathlib.PurePosixPath, pathlib.PureWindowsPath
    paths = {"PosixPath": posix, "PurePosixPath": posix, "WindowsPath": windows, "PureWindowsPath": windows}
    for module in ("pathlib", "pathlib._local"):
        found += [
            (kind, f"{module}.{name}") for name, kind in {**paths, "Path": posix, "PurePath": posix}.items()
        ]
    return found


def _is_torchscript(name: str) -> bool:
    try:
        with zipfile.ZipFile(name) as archive:
            return any(member.rpartition("/")[2] == "constants.pkl" for member in archive.namelist())
    except Exception:  # no zip file, or a damaged one
        return False


def _unpickled(name: str) -> Any:
    # Before torch 2.6 weights_only did not hold for files of torch.jit.save, either.
    if _is_torchscript(name):
        raise _not_weights_alone(name, "a TorchScript program")
    allowed = getattr(torch.serialization, "safe_globals", None)  # torch 2.5 and later
    try:
        with contextlib.nullcontext() if allowed is None else allowed(_harmless()):
            return torch.load(name, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises anything for damaged files
        text = str(error)
        if found := re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", text):  # torch 2.1 has other words
            raise _not_weights_alone(name, f"an object of the class {found[1]}") from error
        # Without torch's advice to read it with weights_only=False.
        told = re.search(r"WeightsUnpickler error: (.*\S)", text)
        why = told[1] if told else text.strip().partition("\n")[0] or "no reason given"
        why = "it is damaged" if why.startswith("Weights only load failed") else why[:150]
        raise _refused(name, f"a whole file of torch.save ({type(error).__name__}: {why})") from error


def _state_dict_in(found: Any, name: str, say: Say | None) -> StateDict:
    candidates = dict(_candidates(found, ""))
    if not candidates:
        held = list(map(str, found))[:SHOWN] if isinstance(found, Mapping) else [type(found).__name__]
        told = f"it holds {', '.join(held) or 'nothing'}"
        raise _refused(name, f"a state dict, or one under {', '.join(ENTRIES)}; {told}")
    place, *others = candidates
    if say is not None and others:
        say(f"weights: read {place!r} of {name}, which also has {', '.join(others)}")
    return candidates[place]


def _candidates(found: Any, place: str) -> Iterator[tuple[str, StateDict]]:
    """Yield the state dicts in a checkpoint with their places."""
    if not isinstance(found, Mapping) or place.count(".") > 2:
        return
    # A layer's get_extra_state may give anything.
    plain = {key: value for key, value in found.items() if not str(key).endswith("_extra_state")}
    if plain and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in plain.items()):
        yield place, dict(found)
        return
    for key in ENTRIES:
        if key in found:
            yield from _candidates(found[key], f"{place}.{key}".lstrip("."))


# Names of parameters.


def renamed_to_fit(state: StateDict, wanted: Mapping[str, Any]) -> tuple[StateDict, str]:
    """Return weights under the names of a network, and a line about the changes (empty if there are none).

    If all of the network's weights are there under one prefix, the others are left out. Otherwise as few of
    :data:`PREFIXES` are removed from each name as make it one of the network's.
    """
    if not wanted or wanted.keys() <= state.keys():
        return state, ""
    longest = max(wanted, key=len)
    whole = [key.removesuffix(longest) for key in state if key.endswith(f".{longest}")]
    whole = [prefix for prefix in whole if all(prefix + name in state for name in wanted)]
    whole = [prefix for prefix in whole if prefix in PREFIXES][:1] or whole
    if len(whole) == 1:
        prefix = whole[0]
        others = [key for key in state if not key.startswith(prefix)]
        left_out = f"; left out: {_some(others)}" if others else ""
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        return found, f"the prefix {prefix!r} of its names was removed{left_out}"
    stripped = {key: _stripped(key, wanted) for key in state}
    if len({*stripped.values()}) < len(state):
        return state, ""
    removed = dict.fromkeys(key.removesuffix(name) for key, name in stripped.items() if key != name)
    change = f"the prefix {', '.join(map(repr, removed))} of its names was removed" if removed else ""
    return {stripped[key]: value for key, value in state.items()}, change


def _stripped(key: str, wanted: Mapping[str, Any]) -> str:
    """Return a name without the fewest :data:`PREFIXES` that make it one of ``wanted`` (unchanged if none do)."""
    waiting = [key]
    while waiting:
        found = waiting.pop(0)
        if found in wanted:
            return found
        waiting += [found.removeprefix(prefix) for prefix in PREFIXES if found.startswith(prefix)]
    return key


def load_weights(network: nn.Module, state: StateDict, file: str, name: str, say: Say | None = None) -> None:
    """Load weights into a network, perhaps wrapped or compiled; errors name the file, the network and parameters."""
    network = original(network)
    wanted = {key: value.shape for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    state, change = renamed_to_fit(state, wanted)
    misshapen: list[str] = []
    why = ""
    try:
        # Names are not compared here: layers may rename entries of their older versions.
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        missing = [key for key in wanted if key not in state]
        unexpected = [key for key in state if key not in wanted]
        misshapen = [
            f"{key} {tuple(state[key].shape)} instead of {tuple(shape)}"
            for key, shape in wanted.items()
            if isinstance(state.get(key), Tensor) and state[key].shape != shape
        ]
        why = "" if misshapen else str(error)
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    told = [f"{kind}: {_some(keys)}" for kind, keys in kinds.items() if keys] + [why] * bool(why)
    if told:
        raise _refused(file, f"the weights of {name}; {'; '.join(told)}")
    if change and say is not None:
        say(f"weights: {change} ({file})")


def _some(keys: list[str]) -> str:
    more = f", … ({len(keys)} in all)" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def class_count(state: StateDict, shapes: Shapes, built: int) -> int:
    """Return the number of classes that weights are for, given the shapes of a network of ``built`` classes."""
    for key in reversed(list(shapes)):  # the head itself comes after auxiliary ones
        found, shape = state.get(key), shapes[key]
        if isinstance(found, Tensor) and found.dim() == len(shape):
            differing = [place for place, size in enumerate(found.shape) if size != shape[place]]
            if len(differing) == 1 and shape[differing[0]] == built:
                return int(found.shape[differing[0]])
    return built

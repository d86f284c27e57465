"""Files of weights: read without executing anything, and loaded only if every parameter fits."""

from __future__ import annotations

import argparse
import codecs
import collections
import contextlib
import datetime
import itertools
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
from ..features.modes import original

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
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "network.",
    "backbone.",
    "encoder.",
    "head.",
    "ema.",
    "_model.",
)
"""Prefixes of parameter names that wrappers and training scripts add."""
SHOWN = 5
"""Names of parameters in an error, of each kind."""


def read_state_dict(path: str | os.PathLike[str], say: Say | None = None) -> StateDict:
    """Return the weights in a file by their names there.

    Args:
        path: safetensors, or a file of ``torch.save``: a state dict, or a checkpoint with one of :data:`ENTRIES`. Beside
            weights it may hold plain values, NumPy scalars and arrays, paths, dates and ``argparse.Namespace``.
        say: Called with a line if one entry of several is read.

    Raises:
        SettingError: No such file, it cannot be read, or it holds anything else.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise _refused(name, "a file: a state dict in .pth, .pt, .ckpt or .safetensors")
    if _kind_of(name) == "safetensors":
        try:
            return dict(load_file(name))
        except (SafetensorError, OSError, ValueError) as error:
            raise _refused(name, f"a whole safetensors file ({error})") from error
    return _state_dict_in(_unpickled(name), name, say)


def _kind_of(name: str) -> str:
    """Return ``safetensors`` or ``torch`` by the content of a file.

    Raises:
        SettingError: It is something else that such files are often replaced by.
    """
    with open(name, "rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    if not start:
        raise _refused(name, "a file of weights; it is empty")
    if text.startswith(b"version https://git-lfs"):
        raise _refused(
            name,
            "a file of weights; it is a Git LFS pointer to one, which `git lfs pull` replaces by the file",
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise _refused(name, "a file of weights; it is an HTML page, as a failed download leaves it")
    if text.startswith((b'{"', b"{\n", b"{ ")) and b"\0" not in start:
        raise _refused(
            name, "a file of weights; it is JSON, such as an index of several files or an error of a server"
        )
    if start.startswith(b"\x1f\x8b"):
        raise _refused(name, "a file of weights; it is compressed with gzip: unpack it first")
    if start.startswith(b"\x89HDF"):
        raise _refused(name, "a file of weights of PyTorch; it is an HDF5 file, as Keras writes them")
    size = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and size < os.path.getsize(name):
        return "safetensors"
    if pathlib.Path(name).suffix.lower() == ".safetensors":
        if start.startswith((b"PK", b"\x80")):
            raise _refused(
                name, "a safetensors file; it is a file of torch.save: its name should end in .pth"
            )
        raise _refused(name, "a whole safetensors file; it does not begin as one")
    if not start.startswith((b"PK", b"\x80")) and not tarfile.is_tarfile(name):
        raise _refused(name, "a whole file of torch.save; it does not begin as one")
    return "torch"


def _refused(name: str, allowed: str) -> SettingError:
    return SettingError("weights", name, allowed)


def _not_weights_alone(name: str, what: str) -> SettingError:
    return _refused(
        name,
        f"a file without code; it holds {what}, and reading that would execute code. If you trust the file, write its "
        "state_dict() alone: torch.save(torch.load(FILE, weights_only=False)[…], NEW)",
    )


def _is_torchscript(name: str) -> bool:
    if not zipfile.is_zipfile(name):
        return False
    with zipfile.ZipFile(name) as archive:
        return any(member.rpartition("/")[2] == "constants.pkl" for member in archive.namelist())


def _harmless() -> list[Any]:
    """Return the types beside weights that may be read: building them executes nothing."""
    core: Any = getattr(np, "_core", None) or vars(np)["core"]  # NumPy 2 and 1
    multiarray = core.multiarray
    found: list[Any] = [
        argparse.Namespace, types.SimpleNamespace, collections.defaultdict, np.dtype, np.ndarray, codecs.encode,
        datetime.datetime, datetime.date, datetime.timedelta, datetime.timezone,
        *(kind for kind in vars(np.dtypes).values() if isinstance(kind, type)),
    ]  # fmt: skip
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found += [
            (multiarray.scalar, f"{module}.scalar"),
            (multiarray._reconstruct, f"{module}._reconstruct"),
        ]
    for module, kind in itertools.product(
        ("pathlib", "pathlib._local"), ("Path", "PosixPath", "WindowsPath")
    ):
        pure = pathlib.PureWindowsPath if kind == "WindowsPath" else pathlib.PurePosixPath
        found += [(pure, f"{module}.{kind}"), (pure, f"{module}.Pure{kind}")]
    return found


def _unpickled(name: str) -> Any:
    try:
        # Before torch 2.6 weights_only did not hold for this format (CVE-2025-32434), which nobody writes any more.
        if tarfile.is_tarfile(name):
            raise _refused(name, "a file of torch.save; it is a tar archive")
        # Nor does it, before torch 2.6, for files of torch.jit.save.
        if _is_torchscript(name):
            raise _not_weights_alone(name, "a TorchScript program")
        allowed = getattr(torch.serialization, "safe_globals", None)  # torch 2.5 and later
        with contextlib.nullcontext() if allowed is None else allowed(_harmless()):
            return torch.load(name, map_location="cpu", weights_only=True)
    except SettingError:
        raise
    except Exception as error:  # torch's reader raises anything for damaged files
        found = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))  # torch 2.1 has other words
        if found:
            raise _not_weights_alone(name, f"an object of the class {found[1]}") from error
        # Without torch's advice to read it with weights_only=False.
        told = re.search(r"WeightsUnpickler error: (.*\S)", str(error))
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = told[1] if told else (lines or ["no reason given"])[0]
        if why.startswith("Weights only load failed"):
            why = "it is damaged"
        raise _refused(name, f"a whole file of torch.save ({type(error).__name__}: {why[:150]})") from error


def _state_dict_in(found: Any, name: str, say: Say | None) -> StateDict:
    candidates = list(_candidates(found, ()))
    if not candidates:
        keys = (
            ", ".join(map(str, list(found)[:SHOWN])) if isinstance(found, Mapping) else type(found).__name__
        )
        raise _refused(name, f"a state dict, or one under {', '.join(ENTRIES)}; it holds {keys or 'nothing'}")
    place, state = candidates[0]
    if say is not None and len(candidates) > 1:
        others = ", ".join(".".join(other) for other, _ in candidates[1:])
        say(f"weights: read {'.'.join(place)!r} of {name}, which also has {others}")
    return state


def _candidates(found: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], StateDict]]:
    """Yield the state dicts in a checkpoint with their places."""
    if not isinstance(found, Mapping) or len(place) > 3:
        return
    # A layer's get_extra_state may give anything.
    plain = {key: value for key, value in found.items() if not str(key).endswith("_extra_state")}
    if plain and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in plain.items()):
        yield place, dict(found)
        return
    for key in ENTRIES:
        if key in found:
            yield from _candidates(found[key], (*place, key))


# Names of parameters.


def renamed_to_fit(state: StateDict, wanted: Mapping[str, Any]) -> tuple[StateDict, str]:
    """Return weights under the names of a network, and a line on what was changed (empty if nothing).

    Prefixes are removed if the names then are those of the network, and no other weights are left out unless all of the
    network's are there under one prefix. Otherwise the weights are returned with as few prefixes as fit best.

    Args:
        state: Weights by name.
        wanted: Names of the network's parameters and buffers.
    """
    if wanted.keys() <= state.keys():
        return state, ""
    stripped = {key: _stripped(key, wanted) for key in state}
    if len(set(stripped.values())) == len(state) and set(stripped.values()) == set(wanted):
        removed = dict.fromkeys(key.removesuffix(name) for key, name in stripped.items() if key != name)
        return (
            {stripped[key]: value for key, value in state.items()},
            f"the prefix {_quoted(removed)} of its names was removed",
        )
    longest = max(wanted, key=len, default="")
    prefixes = [key.removesuffix(longest) for key in state if key.endswith(f".{longest}")]
    whole = [prefix for prefix in prefixes if all(prefix + name in state for name in wanted)]
    if len(whole) > 1:
        known = [prefix for prefix in whole if prefix in PREFIXES]
        whole = known[:1] or whole
    if len(whole) == 1:
        prefix = whole[0]
        others = [key for key in state if not key.startswith(prefix)]
        left_out = f"; left out: {_some(others)}" if others else ""
        return (
            {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)},
            f"the prefix {prefix!r} of its names was removed{left_out}",
        )
    best = max(_whole_prefixes(state, ""), key=lambda tried: len(tried[0].keys() & wanted.keys()))
    return best[0], f"the prefix {best[1]!r} of its names was removed" if best[1] else ""


def _stripped(key: str, wanted: Mapping[str, Any]) -> str:
    """Return a name without as few of :data:`PREFIXES` as make it one of ``wanted`` (as it is if none do)."""
    waiting = [key]
    while waiting:
        found = waiting.pop(0)
        if found in wanted:
            return found
        waiting += [found.removeprefix(prefix) for prefix in PREFIXES if found.startswith(prefix)]
    return key


def _whole_prefixes(state: StateDict, before: str) -> Iterator[tuple[StateDict, str]]:
    yield state, before
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            yield from _whole_prefixes(
                {key.removeprefix(prefix): value for key, value in state.items()}, before + prefix
            )


def load_weights(network: nn.Module, state: StateDict, file: str, name: str, say: Say | None = None) -> None:
    """Load weights into a network.

    Args:
        network: The network, perhaps wrapped or compiled.
        state: Weights by name.
        file: The file, for errors.
        name: The network's name, for errors.
        say: Called with a line if names were changed.

    Raises:
        SettingError: Some are missing, unexpected, or of another shape; names a few of each.
    """
    network = original(network)
    wanted = {
        key: tuple(value.shape) for key, value in network.state_dict().items() if isinstance(value, Tensor)
    }
    state, change = renamed_to_fit(state, wanted)
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {shape}"
        for key, shape in wanted.items()
        if isinstance(state.get(key), Tensor) and tuple(state[key].shape) != shape
    ]
    missing, unexpected = [], []
    why = ""
    try:
        # Names are not compared here: layers may rename or add what older versions of them have saved.
        missing, unexpected = network.load_state_dict(state, strict=False)
        misshapen = []
    except RuntimeError as error:
        missing = [key for key in wanted if key not in state]
        unexpected = [key for key in state if key not in wanted]
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


def _quoted(words: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, words))


def class_count(state: StateDict, one: Shapes, other: Shapes, counts: tuple[int, int]) -> int | None:
    """Return the number of classes that weights are for (None if they have no head).

    Args:
        state: Weights by name, without prefixes.
        one: Shapes of a network of ``counts[0]`` classes by name.
        other: Shapes of one of ``counts[1]`` classes; the two differ in the head.
        counts: Two numbers of classes.
    """
    for key in reversed(list(one)):  # the head itself comes after auxiliary ones
        for place, pair in enumerate(zip(one[key], other.get(key, ()), strict=False)):
            found = state.get(key)
            if pair == counts and isinstance(found, Tensor) and found.dim() == len(one[key]):
                return int(found.shape[place])
    return None

"""Files of weights → a network: read without executing anything, and only where every parameter fits."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import SettingError
from ..evidence.modes import unwrap

StateDict = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
"""Under which of its entries a checkpoint keeps the weights."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before each name."""
SHOWN = 5
"""Names of parameters that an error shows of each kind."""


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """The weights in a file, by the names that they have there.

    Args:
        path: .safetensors, or what ``torch.save`` has written: a state dict, or one of :data:`WRAPPERS` with it.

    Raises:
        SettingError: there is no such file, it cannot be read, or it holds more than tensors and plain values.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise _refused(name, "a file: a state dict in .pth, .pt, .ckpt or .safetensors")
    if Path(name).suffix.lower() == ".safetensors":
        try:
            return dict(load_file(name))
        except (SafetensorError, OSError, ValueError) as error:
            raise _refused(name, f"safetensors ({error})") from error
    return _state_dict_of(_unpickled(name), name)


def _refused(name: str, allowed: str) -> SettingError:
    return SettingError("weights", name, allowed)


def _more_than_weights(name: str, what: str) -> SettingError:
    return _refused(
        name,
        f"nothing but weights: it holds {what}, too, and reading that would execute code. Where you trust the "
        "file: torch.save(torch.load(FILE, weights_only=False), …) of its state_dict() alone",
    )


def _is_torchscript(name: str) -> bool:
    """Whether torch takes it for such a program."""
    if not zipfile.is_zipfile(name):
        return False
    with zipfile.ZipFile(name) as archive:
        return any(member.rpartition("/")[2] == "constants.pkl" for member in archive.namelist())


def _unpickled(name: str) -> Any:
    try:
        # Before torch 2.6 weights_only did not hold for this format (CVE-2025-32434); nobody writes it any more.
        if tarfile.is_tarfile(name):
            raise _refused(name, "what torch.save writes, not a tar archive")
        # Nor does it, before torch 2.6, for what torch.jit.save writes.
        if _is_torchscript(name):
            raise _more_than_weights(name, "a TorchScript program")
        return torch.load(name, map_location="cpu", weights_only=True)
    except SettingError:
        raise
    except Exception as error:  # of broken files, torch's reader raises whatever its parts do
        found = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))  # torch 2.1 has other words
        if found:
            raise _more_than_weights(name, found[1]) from error
        # Without torch's advice to read it with weights_only=False.
        told = re.search(r"WeightsUnpickler error: (.*)", str(error))
        why = told[1] if told else (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _refused(
            name, f"what torch.save writes, whole ({type(error).__name__}: {why[:150]})"
        ) from error


def _state_dict_of(found: Any, name: str) -> StateDict:
    candidates = [found]
    if isinstance(found, Mapping):
        candidates += [found[key] for key in WRAPPERS if key in found]
    for candidate in candidates:
        if isinstance(candidate, Mapping) and _are_weights(candidate):
            return dict(candidate)
    keys = ", ".join(map(str, list(found)[:SHOWN])) if isinstance(found, Mapping) else type(found).__name__
    raise _refused(name, f"a state dict, or one under {', '.join(WRAPPERS)}; it holds {keys or 'nothing'}")


def _are_weights(found: Mapping[Any, Any]) -> bool:
    # A layer's get_extra_state may give anything.
    plain = {key: value for key, value in found.items() if not str(key).endswith("_extra_state")}
    return bool(plain) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in plain.items())


def without_prefix(state: StateDict, names: Mapping[str, Any]) -> StateDict:
    """The same weights, less the prefixes that all of them have and with which fewer of them are in ``names``."""
    return max(_stripped(state), key=lambda tried: len(tried.keys() & names.keys()))


def _stripped(state: StateDict) -> Iterator[StateDict]:
    yield state
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            yield from _stripped({key.removeprefix(prefix): value for key, value in state.items()})


def fill(network: nn.Module, state: StateDict, name: str, whose: str) -> None:
    """Load weights into a network.

    Args:
        network: compiled or wrapped, it is the one inside.
        state: by name, with or without prefixes.
        name: the file, for errors.
        whose: the network's name, for errors.

    Raises:
        SettingError: some are missing, unexpected, or of another shape; names a few of each.
    """
    network = unwrap(network)
    network = getattr(network, "_orig_mod", network)  # torch.compile's
    wanted = {
        key: tuple(value.shape) for key, value in network.state_dict().items() if isinstance(value, Tensor)
    }
    state = without_prefix(state, wanted)
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {shape}"
        for key, shape in wanted.items()
        if isinstance(state.get(key), Tensor) and tuple(state[key].shape) != shape
    ]
    missing, unexpected = [], []
    why = ""
    try:
        # Not by comparing names here: layers may rename or add what older versions of them have saved.
        missing, unexpected = network.load_state_dict(state, strict=False)
        misshapen = []
    except RuntimeError as error:
        missing = [key for key in wanted if key not in state]
        unexpected = [key for key in state if key not in wanted]
        why = "" if misshapen else str(error)
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    told = [f"{kind}: {_some(keys)}" for kind, keys in kinds.items() if keys] + [why] * bool(why)
    if told:
        raise _refused(name, f"the weights of {whose}; {'; '.join(told)}")


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:SHOWN])
    return shown if len(keys) <= SHOWN else f"{shown}, … ({len(keys)} in all)"


def class_count(state: StateDict, one: Shapes, other: Shapes, counts: tuple[int, int]) -> int | None:
    """How many classes the weights are for; None where they have no head.

    Args:
        state: by name, without prefixes.
        one: the shapes of a network of ``counts[0]`` classes by name.
        other: those of one of ``counts[1]``; where the two differ is its head.
        counts: two numbers of classes.
    """
    for key in reversed(list(one)):  # the head itself comes after auxiliary ones
        for place, pair in enumerate(zip(one[key], other.get(key, ()), strict=False)):
            found = state.get(key)
            if pair == counts and isinstance(found, Tensor) and found.dim() == len(one[key]):
                return int(found.shape[place])
    return None

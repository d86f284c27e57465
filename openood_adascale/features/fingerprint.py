"""Fingerprints of networks and datasets, the same in every process and on every device."""

from __future__ import annotations

import builtins
import enum
import functools
import hashlib
import inspect
import os
import re
import sys
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data

from .border import state_with_offloaded
from .modes import evaluating, original


class NotFingerprintableError(ValueError):
    """An input without a representation that another process could compare.

    Args:
        reason: The input, and why.
        tag_helps: False if no text of the user can stand in for it.
    """

    def __init__(self, reason: str, tag_helps: bool = True) -> None:
        super().__init__(reason)
        self.tag_helps = tag_helps


# Weights.


def weights_fingerprint(network: nn.Module, without: Collection[str] = ()) -> dict[str, str]:
    """Return a digest of name, shape, dtype and bytes for each tensor of the state dict, in eval mode.

    Args:
        network: The network, wrapped, compiled or not.
        without: Names of buffers to leave out, since a forward pass changes them.
    """
    network = original(network)
    found: dict[str, str] = {}
    with evaluating(network):  # eval mode may merge weights
        tensors = state_with_offloaded(network)
        for name, buffer in network.named_buffers():  # non-persistent ones
            tensors.setdefault(name, buffer)
        for name, value in tensors.items():
            if name not in without:
                digest = hashlib.blake2b(digest_size=8)
                for part in _described_tensors(value):
                    digest.update(part)
                found[name] = digest.hexdigest()
    return found


def first_difference(saved: Mapping[str, str], present: Mapping[str, str]) -> str | None:
    """Return a description of the first tensor, in the present network's order, that differs."""
    for name in [*present, *saved]:
        if name not in present:
            return f"it has no tensor {name!r}"
        if name not in saved:
            return f"its tensor {name!r} is not in the saved network"
        if saved[name] != present[name]:
            return f"its tensor {name!r} has other values, or another shape or dtype"
    return None


def _described_tensors(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} {value.layout}".encode()
        try:
            for part in _dense_parts(value.detach()):
                yield part.cpu().contiguous().flatten().view(torch.uint8).numpy().data
        except (RuntimeError, NotImplementedError):  # meta or nested tensors: shape and dtype alone
            return
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from _described_tensors(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _described_tensors(item)
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        yield repr(value).encode()
    else:  # packed weights of quantised layers, say
        yield type(value).__qualname__.encode()
        state = getattr(value, "__getstate__", None)
        if callable(state) and not isinstance(inner := state(), type(value)):
            yield from _described_tensors(inner)


def _dense_parts(value: Tensor) -> list[Tensor]:
    if value.layout == torch.strided:
        return [value.dequantize() if value.is_quantized else value.resolve_conj().resolve_neg()]
    if value.layout == torch.sparse_coo:
        value = value.coalesce()
        return [value.indices(), value.values()]
    return [value.to_dense()]


def network_key(network: nn.Module, tag: str | None) -> str:
    """Return a digest of weights, ``repr`` and the source of classes outside installed libraries.

    Raises:
        NotFingerprintableError: A class has no source, and there is no ``tag``.
    """
    network = original(network)
    kinds = dict.fromkeys(type(module) for module in network.modules())
    sources = [_source(kind, tag) for kind in kinds]
    text = [repr(weights_fingerprint(network)), re.sub(r" at 0x\w+", "", repr(network)), *sources]
    return _digest("\n".join(text))


# Datasets.


def dataset_key(loader: Any, tag: str | None) -> str:
    """Return a digest of a loader's images; order and batch size do not matter.

    Supported are PyTorch's ``DataLoader`` with the default ``collate_fn`` over OpenOOD's image lists, torchvision's image
    folders and in-memory datasets, this package's datasets, ``TensorDataset``, ``Subset`` and ``ConcatDataset`` of these,
    Hugging Face datasets, and any dataset with an attribute ``cache_key``.

    Args:
        loader: The loader.
        tag: Stands in for everything without a comparable representation (default: such datasets are refused).

    Raises:
        NotFingerprintableError: The dataset or its transform has no comparable representation; says which part.
    """
    if type(loader) is not data.DataLoader or loader.batch_sampler is None:
        raise NotFingerprintableError(f"a {type(loader).__name__} does not index a dataset", tag_helps=False)
    dataset: Any = loader.dataset
    if isinstance(dataset, data.IterableDataset) or not hasattr(dataset, "__len__"):
        raise NotFingerprintableError(f"a {type(dataset).__name__} cannot be indexed", tag_helps=False)
    text = _describe_dataset(dataset, tag)
    if loader.collate_fn is not data.default_collate:
        text += _describe(loader.collate_fn, tag)
    if loader.worker_init_fn is not None:
        text += _describe(loader.worker_init_fn, tag)
    return _digest(text)


def _describe_dataset(dataset: Any, tag: str | None) -> str:
    name = qualified_name(type(dataset))
    if (own := getattr(dataset, "cache_key", None)) is not None:
        return f"{name} {len(dataset)} {own!r}"
    if type(dataset) is data.TensorDataset:
        return name + _describe(list(dataset.tensors), tag)
    if type(dataset) is data.Subset:
        return f"{name} {_describe_dataset(dataset.dataset, tag)} {_describe(list(dataset.indices), tag)}"
    if type(dataset) is data.ConcatDataset:
        return name + "".join(f"({_describe_dataset(part, tag)})" for part in dataset.datasets)
    if isinstance(fingerprint := getattr(dataset, "_fingerprint", None), str):  # Hugging Face datasets
        transform = getattr(dataset, "format", None)
        return f"{name} {len(dataset)} {fingerprint} {_describe(transform, tag)}"
    paths = _files(name, dataset)
    if paths is not None:
        relative = "" if all(map(os.path.isabs, paths)) else os.getcwd()
        return f"{name} {_describe(vars(dataset), tag)} {relative} {_describe(_file_states(paths), tag)}"
    if tag is not None or (name.startswith("torchvision.datasets.") and hasattr(dataset, "data")):
        return f"{name} {len(dataset)} {_describe(_state(dataset) or {}, tag)}"
    raise NotFingerprintableError(f"{name} is not a known dataset and has no attribute cache_key")


def _files(name: str, dataset: Any) -> list[str] | None:
    if name == "openood.datasets.imglist_dataset.ImglistDataset":
        names = [line.split(" ", 1)[0].strip() for line in dataset.imglist[: len(dataset)]]
        return [os.path.join(dataset.data_dir, name) for name in names]
    if name in ("torchvision.datasets.folder.ImageFolder", "torchvision.datasets.folder.DatasetFolder"):
        return [path for path, _ in dataset.samples]
    if name.startswith("openood_adascale."):
        files = getattr(dataset, "files", dataset)
        return list(files.paths)
    return None


def _file_states(paths: Iterable[str]) -> np.ndarray:
    """Return (N, 2) int64 sizes and times of modification."""
    states = [(state.st_size, state.st_mtime_ns) for state in map(os.stat, paths)]
    return np.array(states, dtype=np.int64).reshape(-1, 2)


# Anything else: transforms and attributes.

_TRUSTED = ("openood", "openood_adascale")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, range)


def _describe(value: Any, tag: str | None, seen: frozenset[int] = frozenset()) -> str:
    """Return a representation of ``value`` that is the same in another process.

    Raises:
        NotFingerprintableError: There is none, and no ``tag``.
    """
    if isinstance(value, _PLAIN):
        return f"{value!r};"
    if isinstance(value, Tensor | np.ndarray):
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            return _describe(value.tolist(), tag, seen)
        array = np.ascontiguousarray(value.detach().cpu().contiguous().view(torch.uint8).numpy()
                                     if isinstance(value, Tensor) and value.numel() else np.asarray(value))  # fmt: skip
        shape = (str(value.dtype), tuple(value.shape))
        return f"{shape} {hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()};"
    if id(value) in seen:
        return "…;"
    seen |= {id(value)}
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({''.join(_describe(item, tag, seen) for item in value)})"
    if isinstance(value, Mapping):
        items = (f"{_describe(key, tag, seen)}{_describe(item, tag, seen)}" for key, item in value.items())
        return f"{type(value).__name__}{{{''.join(items)}}}"
    if isinstance(value, set | frozenset):
        return f"set({''.join(sorted(_describe(item, tag, seen) for item in value))})"
    if isinstance(value, enum.Enum | types.ModuleType):
        return f"{value!r};" if isinstance(value, enum.Enum) else f"{value.__name__};"
    if isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords, vars(value)]
        return f"{type(value).__qualname__}({''.join(_describe(part, tag, seen) for part in parts)})"
    if isinstance(value, types.MethodType):
        return f"{value.__name__} of {_describe(value.__self__, tag, seen)}"
    if isinstance(value, types.BuiltinMethodType) and not isinstance(value.__self__, types.ModuleType | None):
        return f"{value.__name__} of {_describe(value.__self__, tag, seen)}"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        name = f"{value.__module__}.{value.__qualname__}"
        if not _is_library(value.__module__):
            return _unstable(f"{value.__qualname__} is a function or class of your own", tag, name)
        if "<" in value.__qualname__:  # a lambda or closure, many of which share the name
            return _unstable(f"{name} is a lambda or a local function", tag, name)
        return f"{name};"
    return _describe_object(value, tag, seen)


def _describe_object(value: Any, tag: str | None, seen: frozenset[int]) -> str:
    kind, text = type(value), repr(value)
    name = qualified_name(kind)
    library = _is_library(kind.__module__)
    state = _state(value)
    if " at 0x" in text:
        if not library or state is None:
            return _unstable(f"the repr of {name} differs between processes", tag, name)
        text = name
    if "<locals>" in name or (kind.__module__ == "__main__" and not library):
        return _unstable(f"{name} is a local class", tag, name)
    own = "" if library else _source(kind, tag)
    return f"{name} {text} {own}{_describe(state or {}, tag, seen)}"


def _state(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object (None if it can have none, as objects of other languages)."""
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    if not slots and not hasattr(value, "__dict__"):
        return None
    return {
        **{name: getattr(value, name) for name in slots if hasattr(value, name)},
        **getattr(value, "__dict__", {}),
    }


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _unstable(reason: str, tag: str | None, name: str) -> str:
    if tag is None:
        raise NotFingerprintableError(reason)
    return f"{tag} {name};"


def _source(kind: type, tag: str | None) -> str:
    """Return the source of a class and its bases, as far as they are outside installed libraries."""
    text = ""
    for base in kind.__mro__:
        made = base.__module__ == "builtins" and not hasattr(
            builtins, base.__name__
        )  # by exec without a module
        if not made and _is_library(base.__module__) and base.__module__.partition(".")[0] not in _TRUSTED:
            continue
        try:
            text += inspect.getsource(base)
        except (OSError, TypeError):
            text += _unstable(f"the class {qualified_name(base)} has no source", tag, qualified_name(base))
    return text


def _is_library(module: str | None) -> bool:
    top = (module or "").partition(".")[0]
    if top == "__main__":
        return False
    return top in _TRUSTED or top in sys.stdlib_module_names or _is_installed(top)


def _is_installed(top: str) -> bool:
    module = sys.modules.get(top)
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")
    folder, name = os.path.split(file)
    return "-packages" in file or _holds_packages(
        os.path.dirname(folder) if name.startswith("__init__.") else folder
    )


@functools.cache
def _holds_packages(folder: str) -> bool:
    """Return True if packages are installed in ``folder``: pip (``--target``, too) and conda put metadata beside them."""
    try:
        return bool(folder) and any(name.endswith(".dist-info") for name in os.listdir(folder))
    except OSError:
        return False


def qualified_name(kind: type) -> str:
    """Return module and qualified name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()

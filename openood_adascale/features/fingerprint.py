"""Fingerprints of networks and datasets, the same in every process and on every device."""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import re
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data

from .network import evaluating, is_counter, original


class NotFingerprintableError(ValueError):
    """An input without a representation that another process could compare; a tag of the user's may stand in for it."""

    def __init__(self, reason: str, tag_helps: bool = True) -> None:
        super().__init__(reason)
        self.tag_helps = tag_helps


# Weights.


def weights_fingerprint(network: nn.Module) -> dict[str, str]:
    """Return a digest of shape, dtype and bytes for each tensor of the state dict by its name, in eval mode.

    Counters (:func:`~.network.is_counter`) are left out, since a forward pass may change them.

    Args:
        network: The network, wrapped, compiled or not.
    """
    network = original(network)
    with evaluating(network):  # eval mode may merge weights
        tensors = {**network.state_dict()}
        for name, buffer in network.named_buffers(remove_duplicate=False):
            tensors.setdefault(name, buffer)  # it may not be persistent
            if is_counter(name, buffer):
                del tensors[name]
        return {name: _describe(value, "") for name, value in tensors.items()}


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


def _describe_tensor(value: Tensor) -> str:
    text = f"{value.dtype} {tuple(value.shape)} {value.layout}"
    value = value.detach().dequantize() if value.is_quantized else value.detach()
    value = value if value.layout == torch.strided else value.to_dense()
    value = value.resolve_conj().resolve_neg().cpu().contiguous()
    return f"{text} {hashed(value.flatten().view(torch.uint8).numpy().data)}"


def network_key(network: nn.Module, tag: str | None) -> str:
    """Return a digest of weights, ``repr`` and the source of classes outside installed libraries."""
    network = original(network)
    kinds = dict.fromkeys(type(module) for module in network.modules())
    sources = [_source(kind, tag) for kind in kinds]
    text = [repr(weights_fingerprint(network)), re.sub(r" at 0x\w+", "", repr(network)), *sources]
    return _digest("\n".join(text))


# Datasets.


def dataset_key(loader: Any, tag: str | None) -> str:
    """Return a digest of a loader's images; order and batch size do not matter.

    Supported are PyTorch's ``DataLoader`` over OpenOOD's image lists, torchvision's image folders and in-memory datasets,
    this package's datasets, ``TensorDataset``, ``Subset`` and ``ConcatDataset`` of these, Hugging Face datasets, and any
    dataset with an attribute ``cache_key``.

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
    for name in ("collate_fn", "worker_init_fn"):
        if (function := getattr(loader, name)) not in (None, data.default_collate):
            text += f" {name} {_describe(function, tag)}"
    return _digest(text)


def _describe_dataset(dataset: Any, tag: str | None) -> str:
    name = _name(type(dataset))
    if (own := getattr(dataset, "cache_key", None)) is not None:
        return f"{name} {len(dataset)} {own!r}"
    if type(dataset) is data.TensorDataset:
        return name + _describe(dataset.tensors, tag)
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
        return f"{name} {len(dataset)} {_describe(getattr(dataset, '__dict__', {}), tag)}"
    raise NotFingerprintableError(f"{name} is not a known dataset and has no attribute cache_key")


def _files(name: str, dataset: Any) -> list[str] | None:
    if name == "openood.datasets.imglist_dataset.ImglistDataset":
        names = [line.split(" ", 1)[0].strip() for line in dataset.imglist[: len(dataset)]]
        return [os.path.join(dataset.data_dir, name) for name in names]
    if name in ("torchvision.datasets.folder.ImageFolder", "torchvision.datasets.folder.DatasetFolder"):
        return [path for path, _ in dataset.samples]
    if name.startswith("openood_adascale."):
        return list(getattr(dataset, "files", dataset).paths)
    return None


def _file_states(paths: Iterable[str]) -> np.ndarray:
    """Return (N, 2) int64 sizes and times of modification."""
    states = [(state.st_size, state.st_mtime_ns) for state in map(os.stat, paths)]
    return np.array(states, dtype=np.int64).reshape(-1, 2)


# Transforms and attributes of datasets.


class _Describer(pickle.Pickler):
    """Hashes an object as pickle would write it.

    Objects of installed libraries are described by their state. An instance of a user's class is described by its repr and
    its source. Other objects of a user's, such as functions, have no comparable representation: ``tag`` stands in for them.
    """

    def __init__(self, tag: str | None) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        super().__init__(self, protocol=5)
        self.fast = True  # else the result depends on which equal objects are one
        self._tag = tag

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return len(content)

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, Tensor):
            return str, (_describe_tensor(value),)
        if isinstance(value, type | types.FunctionType):
            if not _is_library(value.__module__):
                return self._unstable(f"{value.__qualname__} is a function or class of your own")
            if "<" in value.__qualname__:  # many lambdas and local functions share the name
                return self._unstable(f"{value.__module__}.{value.__qualname__} is a lambda or local")
        elif not _is_library(kind.__module__):
            text, local = repr(value), "<locals>" in kind.__qualname__ or kind.__module__ == "__main__"
            if local or " at 0x" in text:
                return self._unstable(f"{_name(kind)} is local, or its repr differs between processes")
            return str, (f"{_name(kind)} {text} {_source(kind, self._tag)}",)
        return NotImplemented

    def _unstable(self, reason: str) -> Any:
        if self._tag is None:
            raise NotFingerprintableError(reason)
        return str, (self._tag,)


def _describe(value: Any, tag: str | None) -> str:
    """Return a digest of ``value`` that is the same in another process."""
    describer = _Describer(tag)
    try:
        describer.dump(value)
    except NotFingerprintableError:
        raise
    except Exception as error:  # an object that pickle cannot write
        if tag is None:
            raise NotFingerprintableError(f"{_name(type(value))}: {error}") from error
        return tag
    return describer.digest.hexdigest()


def _source(kind: type, tag: str | None) -> str:
    """Return the source of a class and its bases, as far as they are outside installed libraries."""
    text = ""
    for base in kind.__mro__:
        if _is_library(base.__module__) and base.__module__.partition(".")[0] not in _TRUSTED:
            continue
        try:
            text += inspect.getsource(base)
        except (OSError, TypeError):
            if tag is None:
                raise NotFingerprintableError(f"the class {_name(base)} has no source") from None
            text += f"{tag} {_name(base)};"
    return text


_TRUSTED = ("openood", "openood_adascale")


def _is_library(module: str | None) -> bool:
    """Return True for modules of the standard library, of installed packages, and of OpenOOD and this package."""
    top = (module or "").partition(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return top in _TRUSTED or top in sys.stdlib_module_names or "-packages" in file  # site- or dist-packages


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def hashed(content: Any) -> str:
    """Return a hash of bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _digest(text: str) -> str:
    return hashed(text.encode(errors="surrogateescape"))

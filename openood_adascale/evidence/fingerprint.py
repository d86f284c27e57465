"""Which network and which images something was made with: digests that another session can compare, and a watch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data

from .description import Unknown, described, qualified
from .modes import evaluating, unwrap


def network_digest(network: nn.Module, without: Collection[str] = ()) -> str:
    """A digest of a network's layers, their code and attributes, hooks, weights and buffers, the same on every device
    and in every process. Of code, whatever it names counts, too, see :mod:`~.description`; of torch's, torchvision's,
    timm's and other installed libraries' layers their names and what others have put into them.

    Args:
        network: compiled or wrapped, it is the one inside that counts; in eval mode, where that differs.
        without: names of buffers and attributes that are left out, since running the network changes them.
    """
    return _digested(network, without)[0]


def full_network_digest(network: nn.Module) -> str | None:
    """:func:`network_digest`; None where there is code, an attribute or a hook whose content cannot be told."""
    digest, told = _digested(network, ())
    return digest if told else None


def _digested(network: nn.Module, without: Collection[str]) -> tuple[str, bool]:
    digest = hashlib.blake2b(digest_size=16)
    network = unwrap(network)
    network = getattr(network, "_orig_mod", network)  # torch.compile's
    told = True
    with evaluating(network):
        for kind, text in _code(network).items():
            counts = CODE not in without
            told = told and (text is not None or not counts)
            digest.update((text if counts and text else qualified(kind)).encode())
        for name, module in network.named_modules(remove_duplicate=False):
            extra = re.sub(r" at 0x\w+", "", module.extra_repr())
            digest.update(f"{name} {type(module).__qualname__} {extra}\n".encode())
        for name, text in {**attributes(network), **_global_hooks()}.items():
            if name not in without:
                told = told and text is not None
                digest.update(f"{name} {text}\n".encode())
        first: dict[int, str] = {}
        for name, value in _tensors(network):
            if name in without:
                continue
            if not isinstance(value, Tensor):
                digest.update(f"{name} {_described_or_kind(value)}".encode())
                continue
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.layout}".encode())
            if (same := first.setdefault(id(value), name)) != name:
                digest.update(f"as {same}".encode())
                continue
            with contextlib.suppress(RuntimeError, NotImplementedError):  # meta, nested: by their shape alone
                for part in _dense_parts(value.detach()):
                    digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest(), told


def _code(network: nn.Module) -> dict[type, str | None]:
    """What the classes of its layers consist of, with whatever their code names; None where that cannot be told."""
    kinds = dict.fromkeys(type(module) for module in network.modules())
    return {kind: _described_or_none(kind) for kind in kinds}


def _tensors(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """All of a network's weights and buffers, under every name that they have, and what else is in its state dict: weights
    of quantised layers, extra states."""
    found: dict[str, Any] = dict(network.named_parameters(remove_duplicate=False))
    found.update(network.named_buffers(remove_duplicate=False))
    # One of its own may leave things out.
    found.update({name: value for name, value in network.state_dict().items() if name not in found})
    yield from found.items()


_TORCHS_OWN = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def attributes(network: nn.Module) -> dict[str, str | None]:
    """What a network's layers have beside weights, buffers and layers, by name, their hooks among it; None where that
    cannot be told."""
    found: dict[str, str | None] = {}
    for path, module in network.named_modules():
        own = {name: value for name, value in vars(module).items() if name not in _TORCHS_OWN}
        for number, (kind, hook) in enumerate(_hooks(module)):
            own[f"{kind} {number}"] = hook
        for name, value in own.items():
            found[f"{path}.{name}".strip(".")] = _described_or_none(value)
    return found


def _hooks(module: nn.Module) -> list[tuple[str, Any]]:
    return [(kind, hook) for kind in _HOOKS for hook in (getattr(module, kind, None) or {}).values()]


def _global_hooks() -> dict[str, str | None]:
    """Hooks that torch calls for every layer of every network."""
    kinds = [
        name for name in vars(nn.modules.module) if name.startswith("_global_") and name.endswith("_hooks")
    ]
    return {
        f"{kind} {number}": _described_or_none(hook)
        for kind in kinds
        for number, hook in enumerate(getattr(nn.modules.module, kind).values())
    }


def _described_or_none(value: Any) -> str | None:
    try:
        return described(value)
    except Exception:
        return None


def _described_or_kind(value: Any) -> str:
    try:
        return described(value)
    except Exception:
        return qualified(type(value))


def _dense_parts(value: Tensor) -> list[Tensor]:
    if value.layout == torch.strided:
        return [value.dequantize() if value.is_quantized else value.resolve_conj().resolve_neg()]
    if value.layout == torch.sparse_coo:
        value = value.coalesce()
        return [value.indices(), value.values()]
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [value.crow_indices(), value.col_indices(), value.values()]
    if value.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [value.ccol_indices(), value.row_indices(), value.values()]
    return [value.to_dense()]


CODE = "what its code names"
_SIMPLE = (bool, int, float, str)


class Glance:
    """A network as it is now, to see cheaply whether anyone has touched it since.

    Notices layers and hooks that were added, replaced or removed, parameters and buffers that were replaced, moved or
    written to (but not through ``.data`` or ``.numpy()``: the digest does), and attributes that are numbers, words or
    flags. It keeps none of them alive.

    Args:
        network: as :func:`network_digest` takes it.
        without: names of buffers and attributes that may change.
    """

    def __init__(self, network: nn.Module, without: Collection[str] = ()) -> None:
        self._without = frozenset(without)
        self._seen = [(weakref.ref(thing), state) for thing, state in self._touchable(network)]

    def still_holds(self, network: nn.Module) -> bool:
        """Whether nothing of ``network`` has been touched."""
        now = list(self._touchable(network))
        return len(now) == len(self._seen) and all(
            seen() is thing and before == state
            for (seen, before), (thing, state) in zip(self._seen, now, strict=True)
        )

    def _touchable(self, network: nn.Module) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        for path, module in network.named_modules():
            simple = [
                (name, value if value == value else "nan")
                for name, value in vars(module).items()
                if type(value) in _SIMPLE and name not in _TORCHS_OWN
            ]
            if self._without:
                simple = [pair for pair in simple if f"{path}.{pair[0]}".strip(".") not in self._without]
            yield module, (*simple, *(id(hook) for _, hook in _hooks(module)))
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None or (self._without and f"{path}.{name}".strip(".") in self._without):
                        continue
                    yield tensor, _state_of(tensor)

    def __reduce__(self) -> tuple[Any, ...]:  # a copy has another network: it has seen nothing of it
        return Glance, (nn.Module(),)


def changeable(network: nn.Module) -> dict[str, Any]:
    """By the names of buffers and attributes, and of the code, what is another when they change."""
    buffers = {name: (id(buffer), *_state_of(buffer)) for name, buffer in network.named_buffers()}
    return {**attributes(network), **buffers, CODE: tuple(_code(network).values())}


def _state_of(tensor: Tensor) -> tuple[int, ...]:
    version = 0 if tensor.is_inference() else tensor._version
    return (version, tensor.data_ptr()) if tensor.layout == torch.strided else (version,)


def images_digest(loader: Any) -> str | None:
    """A digest of what a loader's images are, the same in every process; None where that cannot be told.

    It can be told of PyTorch's ``DataLoader`` over OpenOOD's image lists, torchvision's image folders, this package's
    ``ImageFiles`` and ``OwnImages``, ``TensorDataset``, and ``Subset`` and ``ConcatDataset`` of these: which files (with
    size and time of change) or numbers, and what the preprocessing consists of. Order and batch size do not matter.
    """
    return _digest_of(lambda: _loader_parts(loader))


def dataset_digest(loader: Any) -> str | None:
    """A digest of what the images of a loader's dataset are, whatever its order and batch size; None where that cannot be
    told, or where the loader does not yield each of them once and as they are."""

    def parts() -> list[Any]:
        collate, dataset = _loader_parts(loader)[-1], _dataset_parts(loader.dataset)
        if collate is not data.default_collate or loader.worker_init_fn is not None:
            raise Unknown  # which may change the images
        return dataset

    return _digest_of(parts)


def _digest_of(parts: Callable[[], list[Any]]) -> str | None:
    try:
        text = described(parts())
    except Exception:  # whatever it is: it cannot be told
        return None
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _loader_parts(loader: Any) -> list[Any]:
    # A subclass, or a sampler of the user's, may yield anything.
    if type(loader) is not data.DataLoader or type(loader.batch_sampler) is not data.BatchSampler:
        raise Unknown
    batches: Any = loader.batch_sampler
    sampler = batches.sampler
    drawn = type(sampler) is data.RandomSampler and not sampler.replacement and not batches.drop_last
    dataset: Any = loader.dataset
    count = len(dataset)
    if not (drawn or type(sampler) is data.SequentialSampler) or len(sampler) != count:
        raise Unknown
    if len(sampler.data_source) != count:  # of numbers that are another data set's
        raise Unknown
    dropped = count % batches.batch_size if batches.drop_last else 0
    return [_dataset_parts(dataset), dropped, loader.collate_fn]


def _dataset_parts(dataset: Any) -> list[Any]:
    kind = qualified(type(dataset))
    if kind == "openood_adascale.plugin.own_images.OwnImages":  # a room above this one
        return _dataset_parts(dataset.files)
    if type(dataset) is data.TensorDataset:
        return [type(dataset), dataset.tensors]
    if type(dataset) is data.Subset:
        return [type(dataset), _dataset_parts(dataset.dataset), list(dataset.indices)]
    if type(dataset) is data.ConcatDataset:
        return [type(dataset), *map(_dataset_parts, dataset.datasets)]
    if kind == "openood.datasets.imglist_dataset.ImglistDataset":
        names = [line.split(" ", 1)[0].strip() for line in dataset.imglist[: len(dataset)]]
        paths = (os.path.join(dataset.data_dir, name) for name in names)
    elif kind in (
        "torchvision.datasets.folder.ImageFolder",
        "torchvision.datasets.folder.DatasetFolder",
    ):
        paths = (path for path, _ in dataset.samples)
    elif kind == "openood_adascale.evaluation.folders.ImageFiles":  # a room above this one
        paths = iter(dataset.paths)
    else:
        raise Unknown
    return [type(dataset), vars(dataset), os.getcwd() if _relative(dataset) else "", _file_states(paths)]


def _relative(dataset: Any) -> bool:
    """Whether a data set's paths, or some of them, begin where the process is."""
    return not os.path.isabs(getattr(dataset, "data_dir", "") or getattr(dataset, "root", ""))


def _file_states(paths: Iterable[str]) -> np.ndarray:
    """(N, 3) int64: size, time of change, and time of the last change of anything, which nobody can set back."""
    states = [(state.st_size, state.st_mtime_ns, state.st_ctime_ns) for state in map(os.stat, paths)]
    return np.array(states, dtype=np.int64).reshape(-1, 3)

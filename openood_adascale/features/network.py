"""Networks as a feature extractor meets them: wrappers, modes, versions of weights, unsupported kinds."""

from __future__ import annotations

import pickle
import random
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn


class NetworkWrapper(nn.Module):
    """Base of modules that add methods to a network and leave its outputs alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network inside ``DataParallel``, ``DistributedDataParallel`` or a :class:`NetworkWrapper`."""
    while isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel | NetworkWrapper):
        network = network.module
    return network


def original(network: nn.Module) -> nn.Module:
    """Return the module behind wrappers and ``torch.compile``."""
    network = unwrap(network)
    found: nn.Module = getattr(network, "_orig_mod", network)
    return found


def device_of(network: nn.Module) -> torch.device:
    """Return the device of the first parameter (default: the CPU)."""
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put ``network`` into eval mode; the modes of all modules are restored afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        if any(mode for _, mode in modes):
            network.eval()  # not the flags alone: a network's own eval() may merge weights
        yield
    finally:
        for module, mode in modes:  # parents first: a parent's train() sets its children
            if module.training != mode:
                module.train(mode)
        for parameter, flag in flags:  # last, as a network's own train() may set them
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Put ``network`` into eval mode with ``requires_grad=False``; both are restored afterwards."""
    if any(parameter.is_inference() for parameter in network.parameters()):
        raise RuntimeError(
            f"network: the weights of {type(network).__name__} were made under torch.inference_mode() and cannot "
            "take part in autograd; build or load the network outside of it"
        )
    with evaluating(network):
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)
        yield


class WeightsVersion:
    """Quick check for changed weights: identities and version counters of parameters, buffers and modules.

    Writes through ``.data`` or ``.numpy()`` are not seen, and writes to counters (:func:`is_counter`) do not count. A
    replaced buffer is accepted, as moving a network to another device replaces them. No tensor is kept alive.

    Args:
        network: The network as it is now.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = weakref.ref(network)
        self._seen = [(weakref.ref(seen[0]), *seen[1:]) for seen in self._look(network)]

    def holds(self, network: nn.Module) -> bool:
        """Return True if ``network`` is the same object and no weight has been written or replaced."""
        now = list(self._look(network))
        if self._network() is not network or len(now) != len(self._seen):
            return False
        for (reference, _, version, dtype), (thing, is_buffer, present, kind) in zip(
            self._seen, now, strict=True
        ):
            if dtype != kind or (version != present if reference() is thing else not is_buffer):
                return False
        return True

    @staticmethod
    def _look(network: nn.Module) -> Iterator[tuple[Any, bool, int, torch.dtype | None]]:
        """Yield modules and tensors, each with True for a buffer, its version and its dtype."""
        for module in network.modules():
            if isinstance(module, torch.jit.ScriptModule):  # its dicts are made again for each look
                continue
            yield module, False, 0, None
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and not is_counter(name, tensor):
                        # Tensors made under inference_mode have no version.
                        version = 0 if tensor.is_inference() else tensor._version
                        yield tensor, tensors is module._buffers, version, tensor.dtype


def is_counter(name: str, tensor: Tensor) -> bool:
    """Return True for a buffer with a single integer, which a forward pass may change.

    The ``num_batches_tracked`` of batch norms is none: it tells that their running statistics have changed.
    """
    return tensor.ndim == 0 and not tensor.is_floating_point() and not name.endswith("num_batches_tracked")


@contextmanager
def restored_random_state(seed: int | None = None) -> Iterator[None]:
    """Restore the global random states afterwards, seeded inside if asked for; torch's GPU generators are left alone."""
    # Other people's code draws from NumPy's legacy global state.
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.random.set_rng_state(states[2])


def random_state() -> bytes:
    """Return the global random states as a value that can be compared."""
    state = random.getstate(), np.random.get_state(), torch.random.get_rng_state().numpy()  # noqa: NPY002
    return pickle.dumps(state)


# Networks that cannot be used.


class UnsupportedNetworkError(ValueError):
    """A network that a feature extractor cannot use."""


def check_network(network: nn.Module) -> None:
    """Check that a feature extractor can use a network; no image is needed.

    Raises:
        UnsupportedNetworkError: The network is TorchScript, exported, sharded, not initialised yet, or without weights.
    """
    inner = original(network)
    name = getattr(inner, "original_name", "") or type(unwrap(inner)).__name__
    if program := _program_kind(inner):
        _refuse(f"{name} is {program}, whose layers cannot be read; expected the module it was made of")
    whole = "expected the whole module, such as from its full state dict"
    for place, module in inner.named_modules():
        kinds = {
            kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch.distributed")
        }
        if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
            _refuse(f"{f'{place!r} of ' if place else ''}{name} is sharded by FSDP; {whole}")
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            at = f"{f'{place}.{key}'.lstrip('.')!r} of {name}"
            if nn.parameter.is_lazy(tensor):
                _refuse(
                    f"{at} is not initialised yet (a lazy layer); expected a network that has run on a batch once"
                )
            if "DTensor" in (type(tensor).__name__, type(getattr(tensor, "data", None)).__name__):
                _refuse(f"{at} is sharded (a DTensor); {whole}")
            if tensor.is_meta:
                _refuse(
                    f"{at} is on the meta device, without values (not loaded, or offloaded by accelerate); expected a "
                    "network with its weights in memory"
                )


def _program_kind(network: nn.Module) -> str:
    if isinstance(network, torch.jit.ScriptModule):
        return "a TorchScript program"
    operators = network.graph.nodes if isinstance(network, torch.fx.GraphModule) else ()
    exported = any(isinstance(node.target, torch._ops.OpOverload) for node in operators)
    return "an exported program" if exported or type(network).__module__.startswith("torch.export") else ""


def head_weights(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a linear layer; raise an error if they are quantised."""
    for tensor in (layer.weight, layer.bias):
        if tensor is None:
            continue
        kind = type(tensor)
        own = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ and kind is not nn.Parameter
        if own or not tensor.is_floating_point():
            _refuse(
                f"its head {type(layer).__name__} has a weight of type {kind.__name__}, {tensor.dtype}, and not of plain "
                "numbers; expected a head that is not quantised (leave the last layer out)"
            )
    return layer.weight, layer.bias


def _refuse(why: str) -> NoReturn:
    raise UnsupportedNetworkError(f"network: {why}")

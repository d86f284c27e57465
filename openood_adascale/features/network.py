"""Networks as a feature extractor meets them: wrappers, modes, versions of weights, offloaded weights, unsupported kinds."""

from __future__ import annotations

import pickle
import random
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

_QUANTISED = ("torch.ao.nn", "torch.nn.quantized", "torch.nn.intrinsic.quantized")


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
    # By place, as accelerate replaces the parameters that it offloads.
    flags = [
        (module._parameters, name, parameter.requires_grad)
        for module, _ in modes
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
    try:
        if any(mode for _, mode in modes):
            network.eval()  # not the flags alone: a network's own eval() may merge weights
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.training = False  # its running statistics must not change
        yield
    finally:
        for module, mode in modes:  # parents first: a parent's train() sets its children
            if module.training != mode:
                module.train(mode)
        for own, name, flag in flags:  # last, as a network's own train() may set them
            parameter = own[name] if name in own else None  # noqa: SIM401  (not a dict in TorchScript)
            if parameter is not None and parameter.requires_grad != flag:
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

    Writes through ``.data`` or ``.numpy()`` are not seen. A replaced buffer is accepted, as moving a network to another
    device replaces them. No tensor is kept alive.

    Args:
        network: The network as it is now.
        without: Names of buffers that a forward pass itself changes.
    """

    def __init__(self, network: nn.Module, without: Collection[str] = ()) -> None:
        self._network, self._without = weakref.ref(network), frozenset(without)
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

    def _look(self, network: nn.Module) -> Iterator[tuple[Any, bool, int, torch.dtype | None]]:
        """Yield modules and tensors, each with True for a buffer, its version and its dtype."""
        waiting = [("", network)]  # faster than named_modules()
        while waiting:
            path, module = waiting.pop()
            if isinstance(module, torch.jit.ScriptModule):  # its dicts are made again for each look
                continue
            yield module, False, 0, None
            waiting += [
                (f"{path}{name}.", child) for name, child in module._modules.items() if child is not None
            ]
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    # Offloaded weights are on the meta device, and replaced for each call.
                    if tensor is not None and not tensor.is_meta and path + name not in self._without:
                        yield tensor, tensors is module._buffers, version_of(tensor), tensor.dtype


def version_of(tensor: Tensor) -> int:
    """Return the version counter of a tensor (0 for tensors made under ``inference_mode``)."""
    return 0 if tensor.is_inference() else tensor._version


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
    program = ""
    if isinstance(inner, torch.jit.ScriptModule):
        program = "a TorchScript program"
    elif _is_exported(inner):
        program = "an exported program"
    elif not isinstance(getattr(inner, "training", None), bool):
        program = "a frozen program without training mode"
    if program:
        _refuse(f"{name} is {program}, whose layers cannot be read; expected the module it was made of")
    whole = "expected the whole module, such as from its full state dict"
    for place, module in inner.named_modules():
        distributed = {
            kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch.distributed")
        }
        if distributed & {"FullyShardedDataParallel", "FSDPModule"}:
            _refuse(f"{_at(name, place)} is sharded by FSDP; {whole}")
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            at = _at(name, f"{place}.{key}".lstrip("."))
            if tensor is None:
                continue
            if nn.parameter.is_lazy(tensor):
                _refuse(
                    f"{at} is not initialised yet (a lazy layer); expected a network that has run on a batch once"
                )
            if "DTensor" in (type(tensor).__name__, type(getattr(tensor, "data", None)).__name__):
                _refuse(f"{at} is sharded (a DTensor); {whole}")
            if tensor.is_meta and not _loading_hooks(module):
                _refuse(f"{at} is on the meta device, without values; expected a network with weights")


def _is_exported(network: nn.Module) -> bool:
    if type(network).__module__.startswith("torch.export"):
        return True
    return isinstance(network, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in network.graph.nodes
    )


def quantisation_of(network: nn.Module) -> str:
    """Return the name of a quantised layer's class (empty if there is none)."""
    for module in network.modules():
        weight = getattr(module, "weight", None)
        integers = (
            isinstance(module, nn.Linear) and isinstance(weight, Tensor) and not weight.is_floating_point()
        )
        if integers or type(module).__module__.startswith(_QUANTISED):
            return type(module).__name__
    return ""


def head_weights(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a linear layer, as they are in a forward pass; raise an error if they are quantised."""
    found = _offloaded_weights(layer)
    weight, bias = found.get("weight", layer.weight), found.get("bias", layer.bias)
    for tensor in (weight, bias):
        if tensor is None:
            continue
        kind = type(tensor)
        own = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ and kind is not nn.Parameter
        if own or not tensor.is_floating_point():
            _refuse(
                f"its head {type(layer).__name__} has a weight of type {kind.__name__}, {tensor.dtype}, and not of plain "
                "numbers; expected a head that is not quantised (leave the last layer out)"
            )
    return weight, bias


# Weights that accelerate keeps elsewhere and loads for each call of a module.


def _loading_hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    hooks = (hook, *getattr(hook, "hooks", ()))  # a SequentialHook has several
    return [one for one in hooks if getattr(one, "offload", False)]


def execution_device(network: nn.Module) -> torch.device | None:
    """Return the device that accelerate's hooks run the network on (None without offloaded modules)."""
    for module in network.modules():
        for hook in _loading_hooks(module):
            if hook.execution_device is not None:
                return torch.device(hook.execution_device)
    return None


def _offloaded_weights(layer: nn.Module) -> dict[str, Tensor]:
    found = {}
    for hook in _loading_hooks(layer):
        device = "cpu" if hook.execution_device is None else hook.execution_device
        for name, parameter in layer.named_parameters():
            if parameter.is_meta and hook.weights_map is not None:
                found[name] = torch.as_tensor(hook.weights_map[name]).to(device, parameter.dtype)
    return found


def state_with_offloaded(network: nn.Module) -> dict[str, Any]:
    """Return the state dict, with the values of weights that accelerate has offloaded."""
    state = {**network.state_dict()}
    for place, module in network.named_modules():
        state |= {f"{place}.{name}".lstrip("."): value for name, value in _offloaded_weights(module).items()}
    return state


def _refuse(why: str) -> NoReturn:
    raise UnsupportedNetworkError(f"network: {why}")


def _at(name: str, place: str) -> str:
    return f"{place!r} of {name}" if place else name

"""State around a forward pass: modes and flags of modules, wrappers, the weights' version, global random states."""

from __future__ import annotations

import random
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

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
    """Put ``network`` into eval mode with ``requires_grad=False``; both are restored afterwards.

    Raises:
        RuntimeError: The weights were created under ``inference_mode``, which bars them from autograd.
    """
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


def loading_hooks(module: nn.Module) -> Iterator[Any]:
    """Yield accelerate's hooks that load a module's offloaded weights for each call."""
    hook = getattr(module, "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):  # a SequentialHook has several
        if getattr(one, "offload", False):
            yield one


def is_offloaded(module: nn.Module) -> bool:
    """Return True if accelerate keeps the module's weights elsewhere and loads them for each call."""
    return any(True for _ in loading_hooks(module))


def batch_dependent(network: nn.Module) -> list[str]:
    """Return the names of batch norms that use the statistics of the batch in the present mode."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and (module.training or module.running_mean is None)
    ]


class WeightsVersion:
    """Cheap tripwire for changed weights: identities, dtypes and version counters of parameters, buffers, submodules.

    Writes through ``.data`` or ``.numpy()`` are not seen. Moving the network to another device replaces its buffers, so a
    replaced buffer is accepted. No tensor is kept alive.

    Args:
        network: The network as it is now.
        without: Names of buffers that a forward pass itself changes.
    """

    def __init__(self, network: nn.Module, without: Collection[str] = ()) -> None:
        self._network = weakref.ref(network)
        self._seen: list[tuple[Any, list[Any], list[tuple[str, str, Any, int, torch.dtype]]]] = []
        for path, module in network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # its dicts are made again for each look
                continue
            children = [None if child is None else weakref.ref(child) for child in module._modules.values()]
            tensors = [
                (kind, name, weakref.ref(tensor), version_of(tensor), tensor.dtype)
                for kind in (() if is_offloaded(module) else ("_parameters", "_buffers"))
                for name, tensor in getattr(module, kind).items()
                if tensor is not None and f"{path}.{name}".lstrip(".") not in without
            ]
            self._seen.append((weakref.ref(module), children, tensors))

    def holds(self, network: nn.Module) -> bool:
        """Return True if ``network`` is the same object and no weight has been written or replaced."""
        if self._network() is not network:
            return False
        for reference, children, tensors in self._seen:
            module = reference()
            if module is None or len(module._modules) != len(children):
                return False
            for child, seen in zip(module._modules.values(), children, strict=True):
                if child is not (None if seen is None else seen()):
                    return False
            for kind, name, seen, version, dtype in tensors:
                tensor = module.__dict__[kind].get(name)
                if tensor is None or tensor.dtype != dtype:
                    return False
                if tensor is seen():
                    if version_of(tensor) != version:
                        return False
                elif kind == "_parameters":
                    return False
        return True

    def __reduce__(self) -> tuple[Any, ...]:  # a copy belongs to another network
        return WeightsVersion, (nn.Module(),)


def version_of(tensor: Tensor) -> int:
    """Return the version counter of a tensor (0 for tensors made under ``inference_mode``)."""
    return 0 if tensor.is_inference() else tensor._version


@contextmanager
def restored_random_state() -> Iterator[None]:
    """Restore the global random states afterwards."""
    # Other people's code draws from NumPy's legacy global state.
    pythons, numpys = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    torchs = torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002
        torch.random.set_rng_state(torchs)


def random_state() -> tuple[Any, ...]:
    """Return the global random states as a value that can be compared."""
    numpys: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return (
        torch.random.get_rng_state().numpy().tobytes(),
        random.getstate(),
        numpys["state"]["key"].tobytes(),
        numpys["state"]["pos"],
        numpys["has_gauss"],
    )


def seed_everything(seed: int) -> None:
    """Seed the global random states; torch's GPU generators are left alone."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002

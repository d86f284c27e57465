"""The border: networks that a feature extractor cannot use, each with its reason, and offloaded weights.

:func:`check_network` looks at a network before its first pass. :func:`head_weights` reads the weights of a head that may be
offloaded by accelerate or quantised.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .modes import is_offloaded, loading_hooks, original, unwrap

_QUANTISED = ("torch.ao.nn", "torch.nn.quantized", "torch.nn.intrinsic.quantized", "torch.ao.nn.quantized")


class UnsupportedNetworkError(ValueError):
    """A network that a feature extractor cannot use."""


def check_network(network: nn.Module) -> None:
    """Check that a feature extractor can use a network; no image is needed.

    Raises:
        UnsupportedNetworkError: The network is TorchScript, exported, sharded, not initialised yet, or without weights.
    """
    inner = original(network)
    name = _name(inner)
    if isinstance(inner, torch.jit.ScriptModule):
        _refuse(
            f"{name} is a TorchScript program, whose layers cannot be read; expected the module it was made of"
        )
    if _is_exported(inner):
        _refuse(
            f"{name} is an exported program, whose layers cannot be read; expected the module it was made of"
        )
    if not isinstance(getattr(inner, "training", None), bool):
        _refuse(
            f"{name} has no training mode, as frozen programs have none; expected the module it was made of"
        )
    for place, module in inner.named_modules():
        kinds = {kind.__name__: kind.__module__ for kind in type(module).__mro__}
        if any(
            kind in kinds and kinds[kind].startswith("torch.distributed")
            for kind in ("FullyShardedDataParallel", "FSDPModule")
        ):
            _refuse(
                f"{_at(name, place)} is sharded by FSDP; expected the whole module, such as from its full state dict"
            )
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                _check_tensor(_at(name, f"{place}.{key}".lstrip(".")), module, tensor)


def _check_tensor(place: str, module: nn.Module, tensor: Tensor) -> None:
    if nn.parameter.is_lazy(tensor):
        _refuse(
            f"{place} is not initialised yet (a lazy layer); expected a network that has run on a batch once"
        )
    if type(tensor).__name__ == "DTensor" or type(getattr(tensor, "data", None)).__name__ == "DTensor":
        _refuse(
            f"{place} is sharded (a DTensor); expected the whole module, such as from its full state dict"
        )
    if tensor.device.type == "meta" and not is_offloaded(module):
        _refuse(f"{place} is on the meta device, without values; expected a network with weights")


def _is_exported(network: nn.Module) -> bool:
    if type(network).__module__.startswith("torch.export"):
        return True
    if not isinstance(network, torch.fx.GraphModule):
        return False
    return any(isinstance(node.target, torch._ops.OpOverload) for node in network.graph.nodes)


def quantisation_of(network: nn.Module) -> str:
    """Return the name of a quantised layer's class (empty if there is none)."""
    for module in network.modules():
        weight = getattr(module, "weight", None)
        plain = isinstance(weight, Tensor)
        if type(module).__module__.startswith(_QUANTISED) or (
            isinstance(module, nn.Linear) and plain and not _is_floating(weight)
        ):
            return type(module).__name__
    return ""


def _is_floating(weight: Any) -> bool:
    return bool(weight.is_floating_point())


# Heads.


def head_weights(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a linear layer, as they are in a forward pass.

    Raises:
        UnsupportedNetworkError: The weight is quantised, or another tensor subclass.
    """
    if is_offloaded(layer):
        found = _offloaded_weights(layer)
        weight, bias = found.get("weight", layer.weight), found.get("bias", layer.bias)
    else:
        weight, bias = layer.weight, layer.bias
    for tensor in filter(lambda one: one is not None, (weight, bias)):
        kind = type(tensor)
        own = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ and kind is not nn.Parameter
        if own or not tensor.is_floating_point():
            _refuse(
                f"its head {type(layer).__name__} has a weight of type {kind.__name__}, {tensor.dtype}, and not of plain "
                "numbers; expected a head that is not quantised (leave the last layer out)"
            )
    return weight, bias


def execution_device(network: nn.Module) -> torch.device | None:
    """Return the device that accelerate's hooks run the network on (None without offloaded modules)."""
    for module in network.modules():
        for hook in loading_hooks(module):
            if hook.execution_device is not None:
                device = hook.execution_device
                return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return None


def _offloaded_weights(layer: nn.Module) -> dict[str, Tensor]:
    found = {}
    for hook in loading_hooks(layer):
        weights = getattr(hook, "weights_map", None)
        if weights is not None:
            for name, parameter in layer.named_parameters():
                if parameter.device.type == "meta":
                    device = hook.execution_device
                    found[name] = torch.as_tensor(weights[name]).to(
                        device if device is not None else "cpu", parameter.dtype
                    )
    return found


def state_with_offloaded(network: nn.Module) -> dict[str, Any]:
    """Return the state dict, with the values of weights that accelerate has offloaded."""
    state = {**network.state_dict()}
    for place, module in network.named_modules():
        if is_offloaded(module):
            state.update(
                {f"{place}.{name}".lstrip("."): value for name, value in _offloaded_weights(module).items()}
            )
    return state


def _refuse(why: str) -> NoReturn:
    raise UnsupportedNetworkError(f"network: {why}")


def _at(name: str, place: str) -> str:
    return f"{place!r} of {name}" if place else name


def _name(network: nn.Module) -> str:
    found: str = getattr(network, "original_name", "") or type(unwrap(network)).__name__
    return found

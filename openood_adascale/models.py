"""What is the activation and what is the head, of any network that ends in a linear layer."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Head(NamedTuple):
    """The linear head g: z = a·weightᵀ + bias."""

    weight: Tensor
    """(C, D)."""
    bias: Tensor
    """(C,), zeros for a head without bias."""


class Output(NamedTuple):
    """What a network says of B images."""

    logits: Tensor
    """(B, C), as the network returns them; their gradient is Algorithm 1's."""
    activation: Tensor
    """(B, D), what the head is applied to."""


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside ``DataParallel`` or ``DistributedDataParallel``."""
    while isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        network = network.module
    return network


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """``network`` in eval mode and without gradients of its weights; every flag is put back, also on errors.

    Raises:
        RuntimeError: the weights were made under ``inference_mode``, which bars them from autograd for good.
    """
    if any(parameter.is_inference() for parameter in network.parameters()):
        raise RuntimeError(
            f"network: the weights of {type(network).__name__} were made under torch.inference_mode() and cannot "
            "take part in autograd; build or load the network outside of it"
        )
    modes = [(module, module.training) for module in network.modules() if module.training]
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for module, _ in modes:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


class Classifier:
    """A network taken apart into activation and linear head.

    The head is the last linear layer (or 1×1 convolution) whose output is the network's. The activation is
    what a network with OpenOOD's ``return_feature=True`` returns as its feature (the first of a list), and the
    head's input otherwise. Threads may share it if the network is in eval mode and frozen already.

    Args:
        network: returns (B, C) logits, or an object that has them as ``logits``.
        images: (B, ...) to try it on; the first two are used.

    Raises:
        TypeError: ``network`` is not a module, or returns something else.
        ValueError: no linear layer gives the network's output.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: {type(network).__name__} is not a torch.nn.Module")
        self.network: nn.Module = unwrap(network)
        images = images[:2]
        self._layer: Any  # a module with weight and bias
        with frozen(self.network), torch.no_grad():
            self._layer, self._call, logits, activation = self._find_head(images.clone())
            self._returns_feature = self._try_return_feature(images.clone(), logits, activation)

    def _find_head(self, images: Tensor) -> tuple[nn.Module, int, Tensor, Tensor]:
        calls: list[tuple[nn.Module, Tensor, Tensor]] = []

        def note(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            given = _input(inputs, keywords)
            if isinstance(given, Tensor) and isinstance(output, Tensor):
                calls.append((module, given.detach().clone(), output.detach().clone()))

        layers = [module for module in self.network.modules() if _is_linear(module)]
        handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
        try:
            logits = logits_of(self.network, self.network(images))
        finally:
            for handle in handles:
                handle.remove()
        for number, (layer, given, output) in reversed(list(enumerate(calls))):
            if output.flatten(1).shape == logits.shape and _close(output.flatten(1).to(logits.dtype), logits):
                earlier = sum(other is layer for other, _, _ in calls[:number])
                return layer, earlier, logits, given.flatten(1)
        raise ValueError(
            f"network: {type(self.network).__name__} has no linear head that shows. The methods of this package need "
            f"a network whose output is that of a linear layer; none of the {len(calls)} calls of its {len(layers)} "
            "linear layers gives its output"
        )

    def _try_return_feature(self, images: Tensor, logits: Tensor, activation: Tensor) -> bool:
        if "return_feature" not in inspect.signature(self.network.forward).parameters:
            return False
        try:
            returned, feature = self._with_feature(images)
        except Exception:
            return False  # a wrapper whose backbone does not know the argument, or returns something else
        return (
            feature.shape == activation.shape and returned.shape == logits.shape and _close(returned, logits)
        )

    def _with_feature(self, images: Tensor) -> Output:
        logits, feature = self.network(images, return_feature=True)
        if isinstance(feature, list | tuple):
            feature = feature[0]
        return Output(logits, feature.flatten(1))

    @property
    def head(self) -> Head:
        """The head's weight and bias as they are now, detached, in the statistics' precision at least float32."""
        weight = self._layer.weight.detach().flatten(1)
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        bias = self._layer.bias
        return Head(weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight.dtype))

    def __call__(self, images: Tensor) -> Output:
        """Logits and activation of (B, ...) images; the caller sets mode and gradients (see :func:`frozen`)."""
        if self._returns_feature:
            return self._with_feature(images)
        seen: list[Tensor] = []
        thread = threading.get_ident()

        def note(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if threading.get_ident() == thread:  # another may run the same network
                seen.append(_input(inputs, keywords))

        handle = self._layer.register_forward_pre_hook(note, with_kwargs=True)
        try:
            logits = logits_of(self.network, self.network(images))
        finally:
            handle.remove()
        return Output(logits, seen[self._call].flatten(1))


def logits_of(network: nn.Module, output: Any) -> Tensor:
    """The (B, C) logits in what ``network`` returned: a tensor, or an object that has them as ``logits``.

    Raises:
        TypeError: neither.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        what = (
            f"a tensor of shape {tuple(logits.shape)}"
            if isinstance(logits, Tensor)
            else type(output).__name__
        )
        raise TypeError(f"network: {type(network).__name__} returns {what}; expected (B, C) logits")
    return logits


def _input(inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return inputs[0] if inputs else keywords.get("input")


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} and module.groups == 1
    )

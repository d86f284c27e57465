"""What is the activation and what is the head, of any network that ends in a linear layer."""

from __future__ import annotations

import inspect
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
    head's input otherwise.

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
            self._layer, logits, activation = self._find_head(images)
            self._returns_feature = self._try_return_feature(images, logits, activation)

    def _find_head(self, images: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
        calls: list[tuple[nn.Module, Tensor, Tensor]] = []

        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                calls.append((module, inputs[0].detach().clone(), output.detach().clone()))

        handles = [m.register_forward_hook(note) for m in self.network.modules() if _is_linear(m)]
        try:
            logits = self._logits(self.network(images))
        finally:
            for handle in handles:
                handle.remove()
        for layer, inputs, output in reversed(calls):
            if output.flatten(1).shape == logits.shape and torch.allclose(
                output.flatten(1).to(logits.dtype), logits, rtol=1e-4, atol=1e-5, equal_nan=True
            ):
                return layer, logits, inputs.flatten(1)
        raise ValueError(
            f"network: {type(self.network).__name__} has no linear head. AdaSCALE needs a network whose output is "
            f"that of a linear layer; none of the {len(calls)} linear layers that it called gives its output"
        )

    def _try_return_feature(self, images: Tensor, logits: Tensor, activation: Tensor) -> bool:
        if "return_feature" not in inspect.signature(self.network.forward).parameters:
            return False
        try:
            returned, feature = self._with_feature(images)
        except (TypeError, ValueError, AttributeError):
            return False  # a wrapper whose backbone does not know the argument
        return (
            feature.shape == activation.shape
            and returned.shape == logits.shape
            and torch.allclose(returned, logits, rtol=1e-4, atol=1e-5, equal_nan=True)
        )

    def _logits(self, output: Any) -> Tensor:
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            what = (
                f"a tensor of shape {tuple(logits.shape)}"
                if isinstance(logits, Tensor)
                else type(output).__name__
            )
            raise TypeError(f"network: {type(self.network).__name__} returns {what}; expected (B, C) logits")
        return logits

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
        handle = self._layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self._logits(self.network(images))
        finally:
            handle.remove()
        return Output(logits, seen[-1].flatten(1))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} and module.groups == 1
    )

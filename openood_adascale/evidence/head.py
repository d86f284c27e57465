"""A network's linear head, and what one call of the network gives."""

from __future__ import annotations

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
    """(B, D) a."""
    head_input: Tensor
    """(B, D) what the head was applied to: a, unless the network returns another feature."""
    head_output: torch.dtype
    """Of what the head's layer returned."""


def head_of(layer: Any) -> Head:
    """A linear layer's weight and bias as they are now, detached, in float32 at least."""
    weight = statistics_input(layer.weight.detach().flatten(1))
    bias = layer.bias
    return Head(weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight.dtype))


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


def statistics_input(values: Tensor) -> Tensor:
    """``values`` in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def is_weight_of(parameter: Tensor, weight: Tensor) -> bool:
    """Whether a network's ``parameter`` can be what a head's (C, D) ``weight`` was read from, whatever its dtype."""
    values = parameter.detach()
    same_size = values.shape[:1] == weight.shape[:1] and values.numel() == weight.numel()
    return same_size and torch.allclose(values.flatten(1).to(weight), weight, rtol=1e-3)

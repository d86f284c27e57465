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


def called(network: nn.Module, images: Tensor, **keywords: Any) -> Any:
    """What ``network`` returns. Where one of torch's layers in it cannot take what it is given, that is told with what the
    network was given; errors of the network's own code come through.

    Raises:
        RuntimeError: as told; or the network is compiled as one whole.
    """
    try:
        return network(images, **keywords)
    except Exception as error:
        name = type(network).__name__
        if type(error).__module__.startswith("torch._dynamo"):
            raise RuntimeError(
                f"network: {name} is compiled with fullgraph=True, which leaves no place to read the activation at; "
                "compile it without fullgraph, or give the network that was compiled (its _orig_mod)"
            ) from error
        if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or not _is_torchs(error):
            raise
        raise RuntimeError(
            f"network: {name} fails on images of shape {tuple(images.shape)}, {images.dtype}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _is_torchs(error: Exception) -> bool:
    """Whether a line of torch's raised it."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    module = "" if place is None else str(place.tb_frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] == "torch"


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
    return same_size and torch.allclose(values.reshape(weight.shape).to(weight), weight, rtol=1e-3)

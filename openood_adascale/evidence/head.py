"""A network's linear head, and what one call of the network gives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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

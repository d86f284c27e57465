"""What the methods that shape activations share."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional

from ..evidence.evidence import Evidence

# How many activations are shaped at a time, so that a search over many images needs little more memory.
_BLOCK = 2**22


def in_blocks(evidence: Evidence) -> Iterator[Evidence]:
    """``evidence`` in parts of so many rows that shaping their activations needs little memory."""
    rows = max(1, _BLOCK // max(1, evidence.size))
    return (evidence[start : start + rows] for start in range(0, len(evidence), rows))


def head_logits(shaped: Tensor, evidence: Evidence) -> Tensor:
    """(N, C) the head's output on (N, D) shaped activations, in their dtype."""
    head = evidence.head
    return functional.linear(shaped, head.weight.to(shaped), head.bias.to(shaped))

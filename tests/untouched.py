"""What a network is like before and after something that must leave it alone."""

from __future__ import annotations

import torch


def snapshot(network):
    """Modes, hooks, gradients, weights and buffers."""
    return (
        [
            (name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
            for name, m in network.named_modules()
        ],
        [(name, p.requires_grad, p.grad is None) for name, p in network.named_parameters()],
        {name: value.clone() for name, value in network.state_dict().items()},
    )


def same(before, after):
    return before[:2] == after[:2] and all(torch.equal(before[2][k], after[2][k]) for k in before[2])

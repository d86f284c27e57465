"""A network's state while it is run: in eval mode, without gradients of its weights, and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Shell(nn.Module):
    """A network with other methods around it, and nothing of its own that changes what it says: what is kept of images is
    that of the network inside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside ``DataParallel``, ``DistributedDataParallel`` or a :class:`Shell`."""
    while isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel | Shell):
        network = network.module
    return network


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are; the CPU for one without."""
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """``network`` in eval mode by its own ``eval()``; every layer's mode is put back, also on errors."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        if any(mode for _, mode in modes):
            network.eval()  # not the flags alone: a network's own eval() may merge weights, say
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.training = False  # else its running statistics would change
        yield
    finally:
        for module, mode in modes:  # parents first: what their train() does to children is put right after
            if module.training != mode:
                module.train(mode)
        for parameter, flag in flags:  # last, since a network's own train() may set them, too
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """:func:`evaluating`, and without gradients of its weights; every flag is put back, also on errors.

    Raises:
        RuntimeError: the weights were made under ``inference_mode``, which bars them from autograd for good.
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


def batch_dependent(network: nn.Module) -> list[str]:
    """The names of layers whose output for an image depends, in the present mode, on the others of its batch."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and (module.training or module.running_mean is None)
    ]

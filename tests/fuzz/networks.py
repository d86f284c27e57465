"""Small random networks, images that they take, and what is the matter with either, if anything is."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Rounded(nn.Module):
    """Activations of a few values only, so that there are ties."""

    def forward(self, values: Tensor) -> Tensor:
        return values + ((values * 2).round() / 2 - values).detach()


class Times(nn.Module):
    """All activations the same, or none: zero times what they were, and something more."""

    def __init__(self, by: float, more: float) -> None:
        super().__init__()
        self.by, self.more = by, more

    def forward(self, values: Tensor) -> Tensor:
        return values * self.by + self.more


class Classified(nn.Module):
    """A body, and a head on what it gives; what it returns is told by ``gives``."""

    def __init__(self, body: nn.Module, head: nn.Module, gives: str) -> None:
        super().__init__()
        self.body, self.head, self.gives = body, head, gives

    def forward(self, images: Tensor) -> Any:
        feature = self.body(images)
        logits = self.head(feature)
        logits = logits.flatten(1) if logits.ndim > 2 else logits
        return GIVES[self.gives](logits, feature)


class WithFeature(Classified):
    """As OpenOOD's networks."""

    def forward(self, images: Tensor, return_feature: bool = False) -> Any:
        logits = super().forward(images)
        return (logits, self.body(images)) if return_feature else logits


class Wrapped(nn.Module):
    """Somebody's wrapper."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Any:
        return self.inner(images)


GIVES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "logits": lambda logits, feature: logits,
    "object": lambda logits, feature: SimpleNamespace(logits=logits),
    "tuple": lambda logits, feature: (logits, feature),
    "dict": lambda logits, feature: {"logits": logits},
    "list": lambda logits, feature: [logits],
    "map": lambda logits, feature: logits[..., None, None],
    "one": lambda logits, feature: logits[:, 0],
    "none": lambda logits, feature: None,
    "softmax": lambda logits, feature: logits.softmax(1),
    "doubled": lambda logits, feature: logits * 2,
    "nan": lambda logits, feature: logits / 0 * 0,
    "number": lambda logits, feature: float(logits.sum()),
}
RIGHT = ("logits", "object")


class Made(NamedTuple):
    """A network, the shape of its images, and whether there is anything the matter with it."""

    network: nn.Module
    shape: tuple[int, ...]
    right: bool
    exact: bool
    """Whether all arithmetic of the body's plain pass is exact, since it is of small binary fractions."""

    @property
    def inner(self) -> Classified:
        """The network without what is around it."""
        found: Any = self.network
        while not isinstance(found, Classified):
            found = (
                found[0]
                if isinstance(found, nn.Sequential)
                else getattr(found, "inner", None) or found.module
            )
        return found

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype


def make(rng: random.Random) -> Made:
    """A network; torch's global random state decides on its weights."""
    size, classes = rng.choice([1, 2, 3, rng.randint(4, 60), rng.randint(60, 300)]), rng.randint(2, 20)
    flat = rng.random() < 0.4
    shape = (rng.randint(1, 40),) if flat else (rng.randint(1, 4), rng.randint(3, 9), rng.randint(3, 9))
    exact = rng.random() < 0.15
    body = _flat_body(rng, shape, size) if flat or exact else _convolutions(rng, shape[0], size)
    mapped = rng.random() < 0.1
    head = (
        nn.Conv2d(size, classes, 1, bias=rng.random() < 0.7)
        if mapped
        else nn.Linear(size, classes, rng.random() < 0.7)
    )
    if mapped:
        body = nn.Sequential(body, nn.Unflatten(1, (size, 1, 1)))
    gives = rng.choice(sorted(GIVES)) if rng.random() < 0.12 else rng.choice(RIGHT)
    returns_feature = not mapped and gives == "logits" and rng.random() < 0.2
    network: nn.Module = (WithFeature if returns_feature else Classified)(body, head, gives)
    _spread(rng, network, exact)
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        network = rng.choice([Wrapped, nn.Sequential, _parallel])(network)
    if rng.random() < 0.25:
        network = network.double()
    return Made(network.train(rng.random() < 0.3), shape, gives in RIGHT, exact)


def _parallel(network: nn.Module) -> nn.Module:
    """Where there is CUDA it would move the network, and the fuzzer's are on the CPU."""
    return network if torch.cuda.is_available() else nn.DataParallel(network)


def _flat_body(rng: random.Random, shape: tuple[int, ...], size: int) -> nn.Sequential:
    inputs = torch.Size(shape).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, size, bias=rng.random() < 0.8), *_ending(rng, size))


def _convolutions(rng: random.Random, channels: int, size: int) -> nn.Sequential:
    width = rng.choice([1, 4, 8])
    first: list[nn.Module] = [nn.Conv2d(channels, width, rng.choice([1, 3]), padding=1)]
    if rng.random() < 0.5:
        first.append(nn.BatchNorm2d(width))
    first.append(rng.choice([nn.ReLU(), nn.GELU(), nn.Tanh(), nn.ReLU(inplace=True)]))
    pooled = rng.choice([1, 2])
    first += [nn.AdaptiveAvgPool2d(pooled), nn.Flatten()]
    if rng.random() < 0.3:
        first.append(nn.Dropout(0.5))
    return nn.Sequential(*first, nn.Linear(width * pooled**2, size), *_ending(rng, size))


def _ending(rng: random.Random, size: int) -> list[nn.Module]:
    kind = rng.choice(
        ["relu", "relu", "relu", "signed", "leaky", "zero", "constant", "ties", "normed", "negative"]
    )
    endings: dict[str, list[nn.Module]] = {
        "relu": [nn.ReLU()], "signed": [], "leaky": [nn.LeakyReLU()], "zero": [Times(0, 0)], "constant": [Times(0, 1.5)],
        "ties": [nn.ReLU(), Rounded()], "normed": [nn.LayerNorm(size)], "negative": [nn.ReLU(), Times(-1, -0.25)],
    }  # fmt: skip
    return endings[kind]


def _spread(rng: random.Random, network: nn.Module, exact: bool) -> None:
    """Weights of some size; or binary fractions of a few bits, whose products and sums float32 holds exactly."""
    scale = rng.choice([1.0, 1.0, 1.0, 0.0, 1e-6, 30.0, 1e6])
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        for parameter in network.parameters():
            if exact:
                parameter.copy_(torch.randint(-3, 4, parameter.shape) / 4)
            elif parameter.ndim > 1:
                parameter.mul_(scale)


def images(rng: random.Random, made: Made, count: int) -> Tensor:
    """So many, of the network's own dtype or another."""
    found = torch.randn(count, *made.shape) * rng.choice([0.1, 1, 1, 3])
    if made.exact:
        found = torch.randint(-4, 5, (count, *made.shape)) / 4
    elif rng.random() < 0.1:
        found = rng.choice(
            [torch.zeros_like(found), torch.ones_like(found), found[:1].expand_as(found).clone()]
        )
    return found.double() if rng.random() < 0.2 else found

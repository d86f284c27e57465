"""Images through the network: logits, activations and perturbed activations. The only step that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import functional as F
from .models import Classifier, Head, frozen


@dataclass(frozen=True)
class Perturbation:
    """Which channel values of an image are moved, and how far (Algorithm 1)."""

    pixels: str
    o: float
    epsilon: float
    seed: int = 0

    def __post_init__(self) -> None:
        # What a setting does not depend on must not make two perturbations of one.
        if self.pixels != "random":
            object.__setattr__(self, "seed", 0)
        if self.pixels == "all":
            object.__setattr__(self, "o", 1.0)


class Encoded(NamedTuple):
    """What the network says of B images."""

    logits: Tensor
    """(B, C) z = W a + b."""
    activation: Tensor
    """(B, D) a."""
    perturbed: dict[Perturbation, Tensor]
    """(B, D) a_ε for each perturbation asked for."""
    head: Head


def encode(classifier: Classifier, images: Tensor, perturbations: Sequence[Perturbation] = ()) -> Encoded:
    """Run the network once for z and a, once backward if a gradient is needed, and once per perturbation.

    The caller's images and the network come back as they were. Works under ``no_grad`` and ``inference_mode``.

    Args:
        classifier: the network taken apart.
        images: (B, ...) floating, normalised as the network sees them; moved to its device and dtype.
        perturbations: each costs one more pass; a gradient is computed only if one is not ``random``.

    Raises:
        TypeError: integer images.
        ValueError: images, activations or logits that are not finite (names which images).
        RuntimeError: the network's output has no gradient with respect to the image, or its weights were made
            under ``inference_mode``.
    """
    images = prepare(classifier.network, images)
    device = images.device
    needs_gradient = any(p.pixels != "random" for p in perturbations)
    with (
        torch.inference_mode(False),
        torch.autocast(device.type, enabled=False),
        frozen(classifier.network),
    ):
        # An image made under inference_mode cannot take part in autograd; its copy can.
        images = images.clone() if images.is_inference() else images.detach()
        gradient = None
        if needs_gradient:
            logits, activation, gradient = _with_gradient(classifier, images)
        else:
            with torch.no_grad():
                logits, activation = classifier(images.clone() if not perturbations else images)
        with torch.no_grad():
            perturbed = {}
            for p in perturbations:
                if p.pixels == "random":
                    direction = _random_direction(tuple(images.shape[1:]), p.o, p.seed)
                    direction = direction.to(device, images.dtype)
                else:
                    assert gradient is not None
                    direction = F.perturbation_direction(gradient, p.o, p.pixels)
                perturbed[p] = _statistics_input(classifier(images + p.epsilon * direction).activation)
            activation = _statistics_input(activation)
            head = classifier.head
            logits = nn.functional.linear(activation, head.weight, head.bias)
        _check_finite("activations of the network", activation, logits, *perturbed.values())
    return Encoded(logits, activation, perturbed, head)


def prepare(network: nn.Module, images: Tensor) -> Tensor:
    """``images`` on the network's device and in its dtype, checked to be floating and finite.

    Raises:
        TypeError: not a floating tensor.
        ValueError: NaN or infinity (names which images).
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        what = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"images: {what} is not allowed; expected a floating tensor, normalised as the network sees it"
        )
    if images.ndim < 2 or len(images) == 0:
        raise ValueError(
            f"images: shape {tuple(images.shape)} is not allowed; expected a batch of at least one image"
        )
    _check_finite("images", images)
    parameter: Any = next(network.parameters(), None)
    if parameter is None:
        return images
    dtype = parameter.dtype if parameter.is_floating_point() else images.dtype
    return images.to(parameter.device, dtype)


def _with_gradient(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        logits, activation = classifier(leaf)
        if not logits.requires_grad:
            raise RuntimeError(
                f"network: the output of {type(classifier.network).__name__} has no gradient with respect to the "
                "image (it detaches or runs under no_grad); use pixels='random', which needs none"
            )
        # The weights are frozen, so that only the image's gradient is computed.
        chosen = logits.gather(1, logits.detach().argmax(1, keepdim=True)).sum()
        (gradient,) = torch.autograd.grad(chosen, leaf)
    return logits.detach(), activation.detach(), gradient


@lru_cache(maxsize=8)
def _random_direction(shape: tuple[int, ...], fraction: float, seed: int) -> Tensor:
    return F.random_direction(shape, fraction, seed)


def _statistics_input(activation: Tensor) -> Tensor:
    return activation.to(torch.promote_types(activation.dtype, torch.float32))


def _check_finite(what: str, *tensors: Tensor) -> None:
    """Raise where a row is not finite; one reduction per tensor when all is well."""
    if all(bool(torch.isfinite(torch.stack(torch.aminmax(t))).all()) for t in tensors):
        return
    bad = (
        torch.stack([~torch.isfinite(t.flatten(1)).all(1) for t in tensors])
        .any(0)
        .nonzero()
        .flatten()
        .tolist()
    )
    raise NotFinite(what, bad)


class NotFinite(ValueError):
    """NaN or infinity in images or activations; ``rows`` are their places in the batch or the loader."""

    def __init__(self, what: str, rows: list[int]) -> None:
        shown = ", ".join(map(str, rows[:10])) + (", …" if len(rows) > 10 else "")
        super().__init__(f"{what}: NaN or infinity for {len(rows)} image(s), number {shown} (counted from 0)")
        self.what, self.rows = what, rows

    def shifted(self, offset: int) -> NotFinite:
        """The same, counted from the start of the loader instead of the batch."""
        return NotFinite(self.what, [row + offset for row in self.rows])

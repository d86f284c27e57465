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

PRECISIONS = ("float32", "bfloat16", "float16", "auto")
MEMORY_FORMATS = ("auto", "contiguous", "channels_last")
CPU_BATCH = 32
"""Images per thread that a CPU works on at a time: its caches hold what they need, and memory stays small."""
TWIN_BATCH = 32
"""Up to so many images go through the network together with their perturbed twins."""


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


def encode(
    classifier: Classifier,
    images: Tensor,
    perturbations: Sequence[Perturbation] = (),
    precision: str = "float32",
    memory_format: str = "auto",
) -> Encoded:
    """Run the network once for z and a, once backward if a gradient is needed, and once per perturbation.

    The caller's images and the network come back as they were. Works under ``no_grad`` and ``inference_mode``.
    On a CPU a batch is worked off in parts that its caches can hold.

    Args:
        classifier: the network taken apart.
        images: (B, ...) floating, normalised as the network sees them; moved to its device and dtype.
        perturbations: each costs one more pass; a gradient is computed only if one is not ``random``.
        precision: one of :data:`PRECISIONS`, of a float32 network's convolutions and products; the head and
            everything after it are float32 at least.
        memory_format: one of :data:`MEMORY_FORMATS`, of image batches (B, channels, height, width).

    Raises:
        TypeError: integer images.
        ValueError: images, activations or logits that are not finite (names which images).
        RuntimeError: the network's output has no gradient with respect to the image, or its weights were made
            under ``inference_mode``.
    """
    images = prepare(classifier.network, images)
    device = images.device
    dtype = _autocast_dtype(precision, device)
    with (
        torch.inference_mode(False),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
        frozen(classifier.network),
    ):
        # An image made under inference_mode cannot take part in autograd; its copy can.
        images = images.clone() if images.is_inference() else images.detach()
        if images.ndim == 4 and _wants_channels_last(memory_format, device, dtype):
            images = images.contiguous(memory_format=torch.channels_last)
        part = CPU_BATCH * torch.get_num_threads() if device.type == "cpu" else len(images)
        parts = [_run(classifier, rows, perturbations) for rows in images.split(part)]
    activation = torch.cat([p.activation for p in parts])
    perturbed = {p: torch.cat([part.perturbed[p] for part in parts]) for p in perturbations}
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        head = classifier.head
        logits = nn.functional.linear(activation, head.weight, head.bias)
    _check_finite("activations of the network", activation, logits, *perturbed.values())
    return Encoded(logits, activation, perturbed, head)


class _Part(NamedTuple):
    activation: Tensor
    perturbed: dict[Perturbation, Tensor]


def _run(classifier: Classifier, images: Tensor, perturbations: Sequence[Perturbation]) -> _Part:
    """The passes over some images; their graph is gone before the perturbed ones begin."""
    activation = None
    gradient = images  # replaced where a direction needs it
    batches = []
    if any(p.pixels != "random" for p in perturbations):
        activation, gradient = _with_gradient(classifier, images)
    else:
        batches.append(images.clone())  # a network may change its input in place
    for p in perturbations:
        if p.pixels == "random":
            direction = _random_direction(tuple(images.shape[1:]), p.o, p.seed).to(images)
        else:
            direction = F.perturbation_direction(gradient, p.o, p.pixels)
        batches.append(images + p.epsilon * direction)
    with torch.no_grad():
        if len(images) <= TWIN_BATCH:  # too few to fill the device: all in one pass
            found = list(classifier(torch.cat(batches)).activation.split(len(images)))
        else:
            found = [classifier(batch).activation for batch in batches]
    found = [_statistics_input(a) for a in found]
    activation = found.pop(0) if activation is None else _statistics_input(activation)
    return _Part(activation, dict(zip(perturbations, found, strict=True)))


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


def _with_gradient(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Activation and the gradient of the predicted class's logit with respect to the image."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        logits, activation = classifier(leaf.clone())  # which a network may change in place
        if not logits.requires_grad:
            raise RuntimeError(
                f"network: the output of {type(classifier.network).__name__} has no gradient with respect to the "
                "image (it detaches or runs under no_grad); use pixels='random', which needs none"
            )
        # The weights are frozen, so that only the image's gradient is computed.
        chosen = logits.gather(1, logits.detach().argmax(1, keepdim=True)).sum()
        # Only signs and ranks of the gradient count; scaled, float16 does not lose the small ones.
        (gradient,) = torch.autograd.grad(chosen * 1024 if logits.dtype == torch.float16 else chosen, leaf)
    _check_finite("gradient of the network with respect to the image", gradient)
    return activation.detach(), gradient


def _autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "auto":
        precision = fastest_precision(device)
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)


@lru_cache
def fastest_precision(device: torch.device) -> str:
    """The fastest of :data:`PRECISIONS` that ``device`` has arithmetic of its own for."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    if device.type == "cpu":
        has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        if any(has.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")):
            return "bfloat16"
    return "float32"


def _wants_channels_last(memory_format: str, device: torch.device, dtype: torch.dtype | None) -> bool:
    if memory_format == "auto":
        return device.type == "cpu" or (device.type == "cuda" and dtype is not None)
    return memory_format == "channels_last"


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

    def __reduce__(self) -> tuple:  # errors cross process borders
        return NotFinite, (self.what, self.rows)

    def shifted(self, offset: int) -> NotFinite:
        """The same, counted from the start of the loader instead of the batch."""
        return NotFinite(self.what, [row + offset for row in self.rows])

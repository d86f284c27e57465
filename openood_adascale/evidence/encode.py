"""Images through the network: logits, activations and perturbed activations. The only step of a method that runs it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import equations
from ..errors import HeadMismatch, NotFinite, SettingError
from .batching import in_parts
from .classifier import Classifier
from .head import Head, Output, statistics_input
from .modes import frozen
from .plan import Execution, Perturbation

FLOAT32 = Execution()
TWIN_BATCH = 32
"""Up to so many images go through the network together with their perturbed twins."""


class Encoded(NamedTuple):
    """What the network says of B images."""

    logits: Tensor
    """(B, C) z = W a + b."""
    prediction: Tensor
    """(B,) the network's own predicted classes, int64."""
    activation: Tensor
    """(B, D) a."""
    perturbed: dict[Perturbation, Tensor]
    """(B, D) a_ε for each perturbation asked for."""
    head: Head


def encode(
    classifier: Classifier,
    images: Tensor,
    perturbations: Sequence[Perturbation] = (),
    execution: Execution = FLOAT32,
    plain: bool = True,
) -> Encoded:
    """Run the network once for z and a, once backward if a gradient is needed, and once per perturbation.

    The caller's images and the network come back as they were. Works under ``no_grad`` and ``inference_mode``.
    A batch is worked off in parts, see :mod:`~.batching`.

    Args:
        classifier: the network taken apart.
        images: (B, ...) floating, normalised as the network sees them; moved to its device and dtype.
        perturbations: each costs one more pass; a gradient is computed only if one is not ``random``.
        execution: precision and memory format.
        plain: False where z and a are known already: for ``random`` perturbations alone, the perturbed passes are all
            that is run, and only ``perturbed`` of the result has rows.

    Raises:
        TypeError: integer images.
        NotFinite: images, activations or logits with NaN or infinity (names which images).
        HeadMismatch: the network's logits are not W a + b of its head.
        MemoryError: not even one image at a time fits the device.
        RuntimeError: the network's output has no gradient with respect to the image, or its weights were made
            under ``inference_mode``.
    """
    images = prepare(classifier.network, images)
    device = images.device
    in_training = any(module.training for module in classifier.network.modules())
    dtype = _autocast_dtype(execution.precision, device) if images.dtype == torch.float32 else None
    with (
        torch.inference_mode(False),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
        frozen(classifier.network),
    ):
        # An image made under inference_mode cannot take part in autograd; its copy can.
        images = images.clone() if images.is_inference() else images.detach()
        gradient = any(p.pixels != "random" for p in perturbations)
        plain = plain or gradient
        work = partial(
            in_parts,
            run=lambda part: _run(classifier, part, perturbations, plain),
            sizes=classifier.sizes,
            gradient=gradient,
            whole=classifier.keeps_batches_whole,
            batch=execution.batch,
        )
        # On a GPU the way back through batch norms is slower in channels-last memory.
        faster = device.type == "cpu" or (device.type == "cuda" and not gradient)
        parts = _in_memory_format(work, classifier, images, execution.memory_format, faster)
        head = classifier.head
        if in_training:  # back in its mode, the network may have other weights
            head = Head(head.weight.clone(), head.bias.clone())
    logits, prediction, activation, *perturbed = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    by_perturbation = dict(zip(perturbations, perturbed, strict=True))
    return Encoded(logits, prediction, activation, by_perturbation, head)


_Parts = list[list[Tensor]]


def _in_memory_format(
    work: Callable[[Tensor], _Parts],
    classifier: Classifier,
    images: Tensor,
    memory_format: str,
    channels_last_is_faster: bool,
) -> _Parts:
    if images.ndim != 4 or memory_format == "contiguous":
        return work(images.contiguous())
    channels_last = images.contiguous(memory_format=torch.channels_last)
    if memory_format == "channels_last":
        return work(channels_last)
    if channels_last_is_faster and classifier.takes_channels_last:
        try:
            return work(channels_last)
        except (NotFinite, HeadMismatch, MemoryError):
            raise
        except Exception as error:
            try:
                parts = work(images.contiguous())
            except Exception:
                raise error from None
            # Only the memory format was in the way: the network flattens with .view(), say.
            classifier.takes_channels_last = False
            return parts
    return work(images.contiguous())


def _run(
    classifier: Classifier,
    images: Tensor,
    perturbations: Sequence[Perturbation],
    with_plain: bool,
) -> list[Tensor]:
    """The passes over some images; their graph is gone before the perturbed ones begin."""
    count = len(images)

    def read(output: Output) -> list[tuple[Tensor, Tensor, Tensor]]:
        """z, the predicted classes and a, of the images and of each batch of twins that went with them."""
        given = (output.activation.detach(), output.logits.detach())
        _check_finite(
            "activations of the network", *(rows for tensor in given for rows in tensor.split(count))
        )
        z = classifier.check(output)
        found = (z, given[1].argmax(1), statistics_input(given[0]))
        return list(zip(*(tensor.split(count) for tensor in found), strict=True))

    plain = []
    gradient = images  # replaced where a direction needs it
    batches = []
    if any(p.pixels != "random" for p in perturbations):
        output, gradient = _with_gradient(classifier, images)
        plain = read(output)
        del output
    elif with_plain:
        batches.append(images.clone())  # a network may change its input in place
    for p in perturbations:
        if p.pixels == "random":
            direction = _random_direction(tuple(images.shape[1:]), p.o, p.seed).to(images)
        else:
            direction = equations.perturbation_direction(gradient, p.o, p.pixels)
        batches.append(images + p.epsilon * direction)
    with torch.no_grad():
        # Too few to fill the device: all in one pass.
        if batches and count <= TWIN_BATCH and not classifier.keeps_batches_whole:
            batches = [torch.cat(batches)]
        found = plain + [rows for batch in batches for rows in read(classifier(batch))]
    if not with_plain:  # columns without rows
        z, prediction, activation = (rows[:0] for rows in found[0])
        found.insert(0, (z, prediction, activation))
    (z, prediction, activation), *moved = found
    return [z, prediction, activation, *(a_eps for _, _, a_eps in moved)]


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


def _with_gradient(classifier: Classifier, images: Tensor) -> tuple[Output, Tensor]:
    """The network's output and the gradient of the predicted class's logit with respect to the image."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        output = classifier(leaf.clone())  # which a network may change in place
        logits = output.logits
        if not logits.requires_grad:
            raise RuntimeError(
                f"network: the output of {type(classifier.network).__name__} has no gradient with respect to the "
                "image (it detaches or runs under no_grad); use pixels='random', which needs none"
            )
        # The weights are frozen, so that only the image's gradient is computed.
        chosen = logits.gather(1, logits.detach().argmax(1, keepdim=True)).sum()
        # Only signs and ranks of the gradient count; scaled, float16 does not lose the small ones.
        scaled = chosen * 1024 if logits.dtype == torch.float16 else chosen
        try:
            (gradient,) = torch.autograd.grad(scaled, leaf)
        except RuntimeError as error:
            # torch's words, and those of 2.1
            if not re.search("use_reentrant|Checkpointing is not compatible", str(error)):
                raise
            raise RuntimeError(
                f"network: {type(classifier.network).__name__} checkpoints its activations in the re-entrant form, "
                "which gives no gradient with respect to the image; call torch.utils.checkpoint with "
                "use_reentrant=False, switch checkpointing off (gradient_checkpointing_disable()), or use "
                "pixels='random', which needs no gradient"
            ) from error
    _check_finite("gradient of the network with respect to the image", gradient)
    return output, gradient


def _autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "auto":
        precision = fastest_precision(device)
    if precision == "float16" and not has_float16(device):
        raise SettingError(
            "precision",
            precision,
            f"one that torch {torch.__version__} has on a {device.type}: float32, bfloat16, auto",
        )
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)


@lru_cache
def has_float16(device: torch.device) -> bool:
    """Whether torch can compute in float16 there; on a CPU its older versions cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with torch.autocast(device.type, torch.float16):
                return True
    except (RuntimeError, UserWarning):
        return False


@lru_cache
def fastest_precision(device: torch.device) -> str:
    """The fastest of :data:`~openood_adascale.evidence.plan.PRECISIONS` that ``device`` has arithmetic of its own for."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    if device.type == "cpu":
        has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        if any(has.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")):
            return "bfloat16"
    return "float32"


@lru_cache(maxsize=8)
def _random_direction(shape: tuple[int, ...], fraction: float, seed: int) -> Tensor:
    return equations.random_direction(shape, fraction, seed)


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

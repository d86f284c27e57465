"""The feature extractor: images through a network to logits, activations and perturbed activations.

This is the only step of a method that runs a network. :meth:`FeatureExtractor.extract` reads from top to bottom:
prepare the images, find the head (once), run the forward passes in chunks, concatenate.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..errors import HeadMismatchError, NotFiniteError, SettingError
from .head import LinearHead, ModelOutput, SplitNetwork, at_least_float32
from .network import WeightsVersion, check_network, evaluating, frozen, unwrap
from .statistics import FeatureRequest, Features, FeatureStatistics, Perturbation

PRECISIONS = ("float32", "bfloat16", "float16", "auto")
MEMORY_FORMATS = ("auto", "contiguous", "channels_last")
CPU_CHUNK = 32
"""Images per thread in a forward pass on a CPU, as many as its caches hold."""


@dataclass(frozen=True)
class InferenceSettings:
    """Settings of the forward passes; see :class:`~openood_adascale.detectors.settings.Settings`."""

    precision: str = "float32"
    memory_format: str = "auto"
    forward_batch_size: int | None = None


FLOAT32 = InferenceSettings()


class FeatureExtractor:
    """Extracts features of images with a network.

    The network is left as it was found: mode, ``requires_grad``, ``.grad``, device and hooks. It is run in eval mode on
    its own device and in its own dtype.

    Args:
        network: A classifier that ends in a linear layer.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.split: SplitNetwork | None = None
        """The network split at its head, after the first pass."""

    def __reduce__(self) -> tuple[Any, ...]:  # a copy finds the head of its own network
        return FeatureExtractor, (self.network,)

    @property
    def head(self) -> LinearHead | None:
        """Present head in eval mode (None before the first pass)."""
        if self.split is None:
            return None
        with evaluating(self.split.network):  # eval mode may merge weights
            return self.split.head.clone()

    def weights_version(self) -> WeightsVersion:
        """Return a tripwire for the network's present weights."""
        return WeightsVersion(unwrap(self.network))

    def statistics(
        self, images: Tensor, request: FeatureRequest, inference: InferenceSettings = FLOAT32
    ) -> FeatureStatistics:
        """Return the feature statistics of one batch; see :meth:`extract`."""
        return FeatureStatistics.from_features(
            self.extract(images, request.perturbations, inference), request
        )

    def extract(
        self,
        images: Tensor,
        perturbations: Sequence[Perturbation] = (),
        inference: InferenceSettings = FLOAT32,
    ) -> Features:
        """Run one forward pass for z and a, one backward pass if a gradient is needed, and one pass per perturbation.

        Works under ``no_grad`` and ``inference_mode``.

        Args:
            images: (B, ...) floating, normalised as the network expects; moved to its device and dtype.
            perturbations: Perturbed inputs.
            inference: Inference settings.

        Raises:
            TypeError: Integer images, or a network that returns no logits.
            NotFiniteError: NaN or infinity in images, activations or logits; names the images.
            HeadMismatchError: The network's logits are not W a + b.
            MemoryError: A single image does not fit into the device's memory.
            RuntimeError: The output has no gradient with respect to the image, or the weights were created under
                ``inference_mode``.
        """
        network = unwrap(self.network)
        if self.split is None:
            check_network(network)
        images = prepare_images(network, images)
        found = self.split is None
        split = self._find_head(images) if self.split is None else self.split
        try:
            return _extract(split, images, perturbations, inference)
        except HeadMismatchError:
            # The network may have a new head since the last pass.
            if found or (again := self._find_head(images)).layer is split.layer:
                raise
        return _extract(again, images, perturbations, inference)

    def _find_head(self, images: Tensor) -> SplitNetwork:
        try:
            # Two images, as a network may fail on a single one.
            self.split = SplitNetwork(self.network, torch.cat([images[:2], images[:2]])[:2])
        except torch.cuda.OutOfMemoryError as error:
            raise _too_large(images[:2], error) from error
        return self.split


def prepare_images(network: nn.Module, images: Tensor) -> Tensor:
    """Move ``images`` to the network's device and dtype; raise an error if they are not floating and finite."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"images: {given} is not allowed; expected a floating tensor, normalised as the network expects it"
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


# Forward passes.


def _extract(
    split: SplitNetwork, images: Tensor, perturbations: Sequence[Perturbation], inference: InferenceSettings
) -> Features:
    gradient = any(p.needs_gradient for p in perturbations)
    training = any(module.training for module in split.network.modules())
    device = images.device
    dtype = _autocast_dtype(inference.precision, device) if images.dtype == torch.float32 else None

    def run(batch: Tensor) -> list[list[Tensor]]:
        return _in_chunks(split, batch, perturbations, gradient, inference.forward_batch_size)

    with (
        torch.inference_mode(False),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
        frozen(split.network),
    ):
        # An image made under inference_mode cannot take part in autograd; its copy can.
        images = images.clone() if images.is_inference() else images.detach()
        chunks = _in_memory_format(split, run, images, inference.memory_format, gradient)
        head = split.head.clone() if training else split.head  # training mode may have other weights
    logits, prediction, activation, *perturbed = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return Features(logits, prediction, activation, dict(zip(perturbations, perturbed, strict=True)), head)


def _run(split: SplitNetwork, images: Tensor, perturbations: Sequence[Perturbation]) -> list[Tensor]:
    """Return [z, prediction, a, a_ε, …] of a chunk; the graph is freed before the perturbed passes begin."""
    gradient = images  # a placeholder, unless a perturbation needs the gradient
    with torch.no_grad():
        if any(p.needs_gradient for p in perturbations):
            output, gradient = _input_gradient(split, images)
            found = _checked(split, output)
            del output
        else:
            found = _checked(split, split(images))
        for p in perturbations:
            if p.needs_gradient:
                direction = functional.perturbation_direction(gradient, p.o, p.pixels)
            else:
                direction = _random_direction(tuple(images.shape[1:]), p.o, p.seed).to(images)
            found.append(_checked(split, split(images + p.epsilon * direction))[2])
    return found


def _checked(split: SplitNetwork, output: ModelOutput) -> list[Tensor]:
    """Return [z, prediction, a] of a pass whose logits are finite and W a + b."""
    activation, logits = output.activation.detach(), output.logits.detach()
    _check_finite("activations of the network", activation, logits)
    return [split.check(output), logits.argmax(1), at_least_float32(activation)]


def _input_gradient(split: SplitNetwork, images: Tensor) -> tuple[ModelOutput, Tensor]:
    """Return the output and the gradient of the predicted class's logit with respect to the image."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        output = split(leaf)
        logits = output.logits
        if not logits.requires_grad:
            raise RuntimeError(
                f"network: the output of {type(split.network).__name__} has no gradient with respect to the image (it "
                "detaches or runs under no_grad); use pixels='random', which needs none"
            )
        # The weights are frozen, so only the image's gradient is computed.
        chosen = logits.gather(1, logits.detach().argmax(1, keepdim=True)).sum()
        # Only signs and ranks of the gradient count; scaling keeps small ones in float16.
        scaled = chosen * 1024 if logits.dtype == torch.float16 else chosen
        (gradient,) = torch.autograd.grad(scaled, leaf)
    _check_finite("gradient of the network with respect to the image", gradient)
    return output, gradient


@lru_cache(maxsize=8)
def _random_direction(shape: tuple[int, ...], fraction: float, seed: int) -> Tensor:
    return functional.random_direction(shape, fraction, seed)


# Chunks of a batch, memory format, precision.


def _in_chunks(
    split: SplitNetwork,
    images: Tensor,
    perturbations: Sequence[Perturbation],
    gradient: bool,
    size: int | None,
) -> list[list[Tensor]]:
    """Run a batch in chunks; a chunk that does not fit into a GPU's memory is halved, and later ones are as small."""
    if size is None:
        size = CPU_CHUNK * torch.get_num_threads() if images.device.type == "cpu" else len(images)
    size = len(images) if split.batch_dependent else min(size, split.fitting_batch.get(gradient, size))
    results: list[list[Tensor]] = []
    start = 0
    while start < len(images):
        chunk = images[start : start + size]
        try:
            if len(chunk) == 1 and split.needs_two:
                found = [rows[:1] for rows in _run(split, torch.cat([chunk, chunk]), perturbations)]
            else:
                found = _run(split, chunk, perturbations)
            results.append(found)
            start += len(chunk)
            continue
        except NotFiniteError as error:
            raise error.shifted(start) from None
        except torch.cuda.OutOfMemoryError as error:
            if split.batch_dependent or len(chunk) == 1:
                raise _too_large(chunk, error) from error
        # Outside the handler, which keeps the failed chunk alive.
        torch.cuda.empty_cache()
        size = split.fitting_batch[gradient] = len(chunk) // 2
        warnings.warn(
            f"forward_batch_size: {len(chunk)} images{' with gradient' if gradient else ''} do not fit the memory of "
            f"{images.device}; continuing with {size}",
            stacklevel=6,
        )
    return results


def _too_large(images: Tensor, error: Exception) -> MemoryError:
    first = str(error).partition("\n")[0]
    return MemoryError(
        f"network: {len(images)} image(s) of shape {tuple(images.shape[1:])} do not fit the memory of {images.device}; "
        f"expected smaller images, smaller batches, a lower precision, or more memory ({first})"
    )


def _in_memory_format(
    split: SplitNetwork,
    run: Callable[[Tensor], list[list[Tensor]]],
    images: Tensor,
    memory_format: str,
    gradient: bool,
) -> list[list[Tensor]]:
    # On a GPU the backward pass through batch norms is slower in channels-last memory.
    faster = images.device.type == "cpu" or (images.device.type == "cuda" and not gradient)
    auto = memory_format == "auto" and faster and split.takes_channels_last
    if images.ndim != 4 or not (auto or memory_format == "channels_last"):
        return run(images.contiguous())
    try:
        return run(images.contiguous(memory_format=torch.channels_last))
    except (NotFiniteError, HeadMismatchError, MemoryError):
        raise
    except Exception as error:
        if not auto:
            raise
        try:
            results = run(images.contiguous())
        except Exception:
            raise error from None
    split.takes_channels_last = False  # it flattens with .view(), say
    return results


def _autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "auto":
        precision = fastest_precision(device)
    if precision == "float16" and not supports_float16(device):
        raise SettingError(
            "precision",
            precision,
            f"one that torch {torch.__version__} supports on {device.type}: float32, bfloat16, auto",
        )
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)


@lru_cache
def supports_float16(device: torch.device) -> bool:
    """Return True if torch supports float16 autocast on ``device``; older versions do not on a CPU."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with torch.autocast(device.type, torch.float16):
                return True
    except (RuntimeError, UserWarning):
        return False


@lru_cache
def fastest_precision(device: torch.device) -> str:
    """Return the fastest precision that ``device`` supports in hardware."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    if device.type == "cpu":
        has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        if any(has.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")):
            return "bfloat16"
    return "float32"


def _check_finite(what: str, *tensors: Tensor) -> None:
    """Raise if a row is not finite; one reduction per tensor if all is well."""
    if all(bool(torch.isfinite(torch.stack(torch.aminmax(t))).all()) for t in tensors):
        return
    bad = torch.stack([~torch.isfinite(t.flatten(1)).all(1) for t in tensors]).any(0)
    raise NotFiniteError(what, bad.nonzero().flatten().tolist())

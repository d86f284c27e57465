"""The feature extractor: images through a network to logits, activations and perturbed activations.

This is the only step of a method that runs a network. :meth:`FeatureExtractor.extract` reads from top to bottom:
prepare the images, find the head (once), run the forward passes in chunks, concatenate.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional
from ..errors import HeadMismatchError, NotFiniteError, SettingError
from .border import check_network, execution_device
from .head import HeadNotCalledError, LinearHead, ModelOutput, SplitNetwork, at_least_float32
from .modes import WeightsVersion, evaluating, frozen, unwrap
from .statistics import FeatureRequest, FeatureStatistics, Perturbation

PRECISIONS = ("float32", "bfloat16", "float16", "auto")
MEMORY_FORMATS = ("auto", "contiguous", "channels_last")


@dataclass(frozen=True)
class InferenceSettings:
    """Settings of the forward passes.

    Args:
        precision: Autocast precision of a float32 network, one of :data:`PRECISIONS`; ``auto`` is the fastest that
            the device supports in hardware. Head, statistics and energy are float32 or float64 regardless.
        memory_format: Memory format of (B, channels, height, width) batches, one of :data:`MEMORY_FORMATS`; ``auto``
            is the faster one.
        forward_batch_size: Images per forward pass (default: the loader's batches, on a CPU in chunks that fit its
            caches). Chunks are halved on CUDA out of memory.
    """

    precision: str = "float32"
    memory_format: str = "auto"
    forward_batch_size: int | None = None


FLOAT32 = InferenceSettings()
CPU_CHUNK = 32
"""Images per thread in a forward pass on a CPU, as many as its caches hold."""
JOINT_BATCH = 32
"""Up to this many images share a forward pass with their perturbed inputs."""


class Features(NamedTuple):
    """Features of B images."""

    logits: Tensor
    """(B, C) z = W a + b, at least float32."""
    prediction: Tensor
    """(B,) int64 predicted classes of the network."""
    activation: Tensor
    """(B, D) penultimate activation a, at least float32."""
    perturbed: dict[Perturbation, Tensor]
    """(B, D) activation a_ε of each perturbed input."""
    head: LinearHead


class FeatureExtractor:
    """Extracts features of images with a network.

    The network is left as it was found: mode, ``requires_grad``, ``.grad``, device and hooks. It is run in eval mode on
    its own device and in its own dtype.

    Args:
        network: A classifier that ends in a linear layer.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.volatile_buffers: frozenset[str] = frozenset()
        """Names of buffers that a forward pass changes, as far as known."""
        self._split: SplitNetwork | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # a copy finds the head of its own network
        return FeatureExtractor, (self.network,), {"volatile_buffers": self.volatile_buffers}

    @property
    def split(self) -> SplitNetwork | None:
        """The network split at its head, after the first pass."""
        return self._split

    @property
    def head(self) -> LinearHead | None:
        """Present head in eval mode (None before the first pass)."""
        if self._split is None:
            return None
        with evaluating(self._split.network):  # eval mode may merge weights
            return self._split.head.clone()

    def weights_version(self) -> WeightsVersion:
        """Return a tripwire for the network's present weights."""
        return WeightsVersion(unwrap(self.network), self.volatile_buffers)

    def statistics(
        self, images: Tensor, request: FeatureRequest, inference: InferenceSettings = FLOAT32
    ) -> FeatureStatistics:
        """Return the feature statistics of one batch; see :meth:`extract`."""
        features = self.extract(images, request.perturbations, inference)
        with torch.no_grad():
            return FeatureStatistics.from_features(
                features.logits, features.prediction, features.activation, features.perturbed, features.head, request
            )  # fmt: skip

    def extract(
        self,
        images: Tensor,
        perturbations: Sequence[Perturbation] = (),
        inference: InferenceSettings = FLOAT32,
        plain: bool = True,
    ) -> Features:
        """Run one forward pass for z and a, one backward pass if a gradient is needed, and one pass per perturbation.

        Works under ``no_grad`` and ``inference_mode``.

        Args:
            images: (B, ...) floating, normalised as the network expects; moved to its device and dtype.
            perturbations: Perturbed inputs.
            inference: Inference settings.
            plain: False if z and a are known already; then ``random`` perturbations run alone, and the other tensors
                of the result are empty.

        Raises:
            TypeError: Integer images, or a network that returns no logits.
            NotFiniteError: NaN or infinity in images, activations or logits; names the images.
            HeadMismatchError: The network's logits are not W a + b.
            MemoryError: A single image does not fit into the device's memory.
            RuntimeError: The output has no gradient with respect to the image, or the weights were created under
                ``inference_mode``.
        """
        network = unwrap(self.network)
        if self._split is None:
            check_network(network)
        images = prepare_images(network, images)
        known = self._split
        split = known or self._find_head(images)
        try:
            return self._extract(split, images, perturbations, inference, plain)
        except (HeadNotCalledError, HeadMismatchError):
            # The network may have a new head since the last pass.
            if known is None or self._find_head(images).layer is known.layer:
                raise
        return self._extract(self._split or known, images, perturbations, inference, plain)

    def _find_head(self, images: Tensor) -> SplitNetwork:
        if len(images) == 1:  # a network may fail on a single image
            images = torch.cat([images, images])
        self._split = _split_network(self.network, images)
        self.volatile_buffers |= self._split.volatile_buffers
        return self._split

    @staticmethod
    def _extract(
        split: SplitNetwork,
        images: Tensor,
        perturbations: Sequence[Perturbation],
        inference: InferenceSettings,
        plain: bool,
    ) -> Features:
        device = images.device
        gradient = any(p.needs_gradient for p in perturbations)
        plain = plain or gradient
        training = any(module.training for module in split.network.modules())
        dtype = _autocast_dtype(inference.precision, device) if images.dtype == torch.float32 else None
        with (
            torch.inference_mode(False),
            torch.autocast(device.type, dtype, enabled=dtype is not None),
            frozen(split.network),
        ):
            # An image made under inference_mode cannot take part in autograd; its copy can.
            images = images.clone() if images.is_inference() else images.detach()

            def run_chunk(chunk: Tensor) -> list[Tensor]:
                if len(chunk) > 1 or not split.needs_two:
                    return _run(split, chunk, perturbations, plain)
                return [rows[:1] for rows in _run(split, torch.cat([chunk, chunk]), perturbations, plain)]

            def run(batch: Tensor) -> list[list[Tensor]]:
                size = inference.forward_batch_size
                return _in_chunks(batch, run_chunk, split, gradient, size)

            chunks = _in_memory_format(run, split, images, inference.memory_format, gradient)
            head = split.head.clone() if training else split.head  # training mode may have other weights
        logits, prediction, activation, *perturbed = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return Features(
            logits, prediction, activation, dict(zip(perturbations, perturbed, strict=True)), head
        )


def _split_network(network: nn.Module, images: Tensor) -> SplitNetwork:
    """Find the head with two images, or with one if a GPU has no room for two."""
    try:
        return SplitNetwork(network, images)
    except torch.cuda.OutOfMemoryError as error:
        if len(images) == 1:
            raise MemoryError(_too_large(images, False, error)) from error
    return _split_network(network, images[:1])  # outside the handler, which keeps the failed batch alive


def prepare_images(network: nn.Module, images: Tensor) -> Tensor:
    """Move ``images`` to the network's device and dtype.

    Raises:
        TypeError: Not a floating tensor.
        ValueError: No image.
        NotFiniteError: NaN or infinity; names the images.
    """
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
    device = parameter.device if parameter.device.type != "meta" else execution_device(network)
    return images.to(device, dtype)


# Forward passes.


def _run(
    split: SplitNetwork, images: Tensor, perturbations: Sequence[Perturbation], with_plain: bool
) -> list[Tensor]:
    """Return [z, prediction, a, a_ε, …] of a chunk; the graph is freed before the perturbed passes begin."""
    count = len(images)

    def read(output: ModelOutput) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return (z, prediction, a) of the images and of each batch of perturbed inputs in the same pass."""
        given = (output.activation.detach(), output.logits.detach())
        _check_finite(
            "activations of the network", *(rows for tensor in given for rows in tensor.split(count))
        )
        z = split.check(output)
        found = (z, given[1].argmax(1), at_least_float32(given[0]))
        return list(zip(*(tensor.split(count) for tensor in found), strict=True))

    results: list[tuple[Tensor, Tensor, Tensor]] = []
    batches: list[Tensor] = []
    gradient = images  # replaced if a perturbation needs it
    if any(p.needs_gradient for p in perturbations):
        output, gradient = _input_gradient(split, images)
        results = read(output)
        del output
    elif with_plain:
        batches.append(images.clone())  # a network may change its input in place
    for p in perturbations:
        if p.needs_gradient:
            direction = functional.perturbation_direction(gradient, p.o, p.pixels)
        else:
            direction = _random_direction(tuple(images.shape[1:]), p.o, p.seed).to(images)
        batches.append(images + p.epsilon * direction)
    with torch.no_grad():
        # Few images do not fill the device: run all in one pass.
        if batches and count <= JOINT_BATCH and not split.batch_dependent:
            batches = [torch.cat(batches)]
        results += [rows for batch in batches for rows in read(split(batch))]
    if not with_plain:  # columns without rows
        z, prediction, activation = (rows[:0] for rows in results[0])
        results.insert(0, (z, prediction, activation))
    (z, prediction, activation), *moved = results
    return [z, prediction, activation, *(a_eps for _, _, a_eps in moved)]


def _input_gradient(split: SplitNetwork, images: Tensor) -> tuple[ModelOutput, Tensor]:
    """Return the output and the gradient of the predicted class's logit with respect to the image."""
    name = type(split.network).__name__
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        output = split(leaf.clone())  # a network may change its input in place
        logits = output.logits
        if not logits.requires_grad:
            raise RuntimeError(
                f"network: the output of {name} has no gradient with respect to the image (it detaches or runs under "
                "no_grad); use pixels='random', which needs none"
            )
        # The weights are frozen, so only the image's gradient is computed.
        chosen = logits.gather(1, logits.detach().argmax(1, keepdim=True)).sum()
        # Only signs and ranks of the gradient count; scaling keeps small ones in float16.
        scaled = chosen * 1024 if logits.dtype == torch.float16 else chosen
        try:
            (gradient,) = torch.autograd.grad(scaled, leaf)
        except (RuntimeError, TypeError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            if not re.search("use_reentrant|Checkpointing is not compatible", str(error)):
                raise RuntimeError(
                    f"network: the backward pass of {name} fails: {type(error).__name__}: {error}; use pixels='random', "
                    "which needs no gradient"
                ) from error
            raise RuntimeError(
                f"network: {name} checkpoints its activations in the re-entrant form, which gives no gradient with "
                "respect to the image; call torch.utils.checkpoint with use_reentrant=False, switch checkpointing off "
                "(gradient_checkpointing_disable()), or use pixels='random', which needs no gradient"
            ) from error
    _check_finite("gradient of the network with respect to the image", gradient)
    return output, gradient


@lru_cache(maxsize=8)
def _random_direction(shape: tuple[int, ...], fraction: float, seed: int) -> Tensor:
    return functional.random_direction(shape, fraction, seed)


# Chunks of a batch, memory format, precision.


def _in_chunks(
    images: Tensor,
    run: Callable[[Tensor], list[Tensor]],
    split: SplitNetwork,
    gradient: bool,
    size: int | None,
) -> list[list[Tensor]]:
    """Run a batch in chunks; a chunk that does not fit into a GPU's memory is halved, and later ones are as small."""
    if split.batch_dependent:
        size = len(images)
    else:
        if size is None:
            on_cpu = images.device.type == "cpu"
            size = CPU_CHUNK * torch.get_num_threads() if on_cpu else len(images)
        size = min(size, split.fitting_batch.get(gradient, size))
    results: list[list[Tensor]] = []
    start, failed = 0, 0
    while start < len(images):
        chunk = images[start : start + size]
        try:
            results.append(run(chunk))
        except NotFiniteError as error:
            raise error.shifted(start) from None
        except torch.cuda.OutOfMemoryError as error:
            if split.batch_dependent or len(chunk) == 1:
                raise MemoryError(_too_large(images, split.batch_dependent, error)) from error
            failed, size = failed or len(chunk), max(1, len(chunk) // 2)
        else:
            start += len(chunk)
            if failed:
                split.fitting_batch[gradient] = size
                _warn_smaller(images, failed, size, gradient)
                failed = 0
            continue
        # Outside the handler, which keeps the failed chunk alive.
        torch.cuda.empty_cache()
    return results


def _warn_smaller(images: Tensor, failed: int, size: int, gradient: bool) -> None:
    warnings.warn(
        f"forward_batch_size: {failed} images{' with gradient' if gradient else ''} do not fit the memory of "
        f"{images.device}; continuing with {size}",
        UserWarning,
        stacklevel=7,
    )


def _too_large(images: Tensor, whole: bool, error: Exception) -> str:
    shape = " × ".join(map(str, images.shape[1:]))
    given = (
        f"a batch of {len(images)} images ({shape}), which cannot be split as the network uses batch statistics,"
        if whole
        else f"one image ({shape})"
    )
    wanted = "smaller batches in the loader" if whole else "smaller images, a lower precision, or more memory"
    first = (str(error).splitlines() or [""])[0]
    return f"network: {given} does not fit the memory of {images.device}; expected {wanted} ({first})"


def _in_memory_format(
    run: Callable[[Tensor], list[list[Tensor]]],
    split: SplitNetwork,
    images: Tensor,
    memory_format: str,
    gradient: bool,
) -> list[list[Tensor]]:
    if images.ndim != 4 or memory_format == "contiguous":
        return run(images.contiguous())
    if memory_format == "channels_last":
        return run(images.contiguous(memory_format=torch.channels_last))
    # On a GPU the backward pass through batch norms is slower in channels-last memory.
    faster = images.device.type == "cpu" or (images.device.type == "cuda" and not gradient)
    if not faster or not split.takes_channels_last:
        return run(images.contiguous())
    try:
        return run(images.contiguous(memory_format=torch.channels_last))
    except (NotFiniteError, HeadMismatchError, HeadNotCalledError, MemoryError):
        raise
    except Exception as error:
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

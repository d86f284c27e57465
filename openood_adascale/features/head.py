"""The linear head of a network: found by running it, and checked in every pass."""

from __future__ import annotations

import inspect
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional
from ..errors import HeadMismatchError
from .network import frozen, head_weights, original, restored_random_state, unwrap


class LinearHead(NamedTuple):
    """The linear head g: z = a·weightᵀ + bias."""

    weight: Tensor
    """(C, D), at least float32."""
    bias: Tensor
    """(C,), zeros for a head without bias."""

    def clone(self) -> LinearHead:
        """Return a copy in memory of its own."""
        return LinearHead(self.weight.clone(), self.bias.clone())

    def to(self, device: torch.device | str) -> LinearHead:
        """Return the head on ``device``."""
        return LinearHead(self.weight.to(device), self.bias.to(device))


class ModelOutput(NamedTuple):
    """Outputs of one forward pass for a batch of B images."""

    logits: Tensor
    """(B, C) as the network returns them; Algorithm 1 takes their gradient."""
    activation: Tensor
    """(B, D) penultimate activation a."""
    head_input: Tensor
    """(B, D) input of the head: a, unless the network returns another feature."""
    head_dtype: torch.dtype
    """Dtype of the head's output."""


class SplitNetwork:
    """A network split into penultimate activation and linear head.

    The head is the last linear layer (or 1×1 convolution) whose output is the network's. The activation is the
    feature that a network with OpenOOD's ``return_feature=True`` returns (the first one of a list), and otherwise the
    head's input. The network must return (B, C) logits, or an object with an attribute ``logits``.

    Args:
        network: The classifier.
        images: (B, ...) images on its device; the first two are run.

    Raises:
        TypeError: The network returns something else than logits.
        ValueError: No linear layer gives the network's output.
        HeadMismatchError: One does, but computes something else than W a + b.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.network = unwrap(network)
        self.takes_channels_last = True  # as far as known
        self.fitting_batch: dict[bool, int] = {}
        """Largest batch that fits a GPU's memory, by "with gradient", after a larger one did not."""
        self.layer: Any = None
        """The head's module."""
        self._call = 0  # the number of its call that gives the logits
        self._returns_feature = False
        images = images[:2].contiguous()
        with restored_random_state(), frozen(self.network), torch.no_grad():
            logits, activation = self._find_head(images)
            self._returns_feature = self._try_return_feature(images, logits, activation)
            again = logits_of(self.network, images)
            alone, self.needs_two = _logits_of_one(self.network, images[:1])
        stochastic = not _close(again, logits)
        normalising = any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
            for module in self.network.modules()
        )
        self.batch_dependent = normalising or (not stochastic and not _nearly_equal(alone, logits[:1]))
        """Outputs that depend on the other images of the batch; such batches are never split."""
        self.uncacheable = ""
        """Reason why the features of this network are not cached (empty if they are)."""
        name = type(self.network).__name__
        if stochastic:
            self.uncacheable = (
                f"{name} is random even in eval mode (dropout that stays on?), and so are its scores"
            )
        elif self.batch_dependent:
            self.uncacheable = (
                f"{name} uses the statistics of the batch even in eval mode, so scores depend on the batches"
            )
        if self.uncacheable:
            _warn(f"{self.uncacheable}; nothing is cached")

    def _find_head(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Set :attr:`layer` and return the network's logits and the head's input."""
        calls: list[tuple[nn.Module, Tensor, Tensor]] = []

        def note(layer: nn.Module, given: Any, output: Any) -> None:
            if isinstance(given, Tensor) and isinstance(output, Tensor) and output.ndim > 1:
                calls.append((layer, given.detach().clone(), output.detach().clone()))

        layers = [module for module in self.network.modules() if _is_linear(module)]
        with _watching(layers, note):
            logits = logits_of(self.network, images)
        refused: HeadMismatchError | None = None
        for number, (layer, given, output) in reversed(list(enumerate(calls))):
            flat = output.flatten(1)
            if flat.shape != logits.shape or not _close(flat.to(logits.dtype), logits):
                continue
            self.layer, self._call = layer, sum(other is layer for other, _, _ in calls[:number])
            given = given.flatten(1)
            try:
                self.check(ModelOutput(logits, given, given, output.dtype))
            except HeadMismatchError as error:
                refused = refused or error
            else:
                return logits, given
        if refused is not None:
            raise refused
        raise ValueError(
            f"network: no linear head found in {type(self.network).__name__}; expected a network whose output is that of "
            f"a linear layer that is not quantised, but none of the {len(calls)} calls of its {len(layers)} linear "
            "layers gives its output"
        )

    def _try_return_feature(self, images: Tensor, logits: Tensor, activation: Tensor) -> bool:
        if "return_feature" not in inspect.signature(self.network.forward).parameters:
            return False
        self._returns_feature = True
        try:
            output = self(images)
            self.check(output)
        except Exception:
            return False  # the backbone in a wrapper has no such argument, or returns something else
        if output.activation.shape != activation.shape or output.logits.shape != logits.shape:
            return False
        if not _close(output.activation, output.head_input):
            _warn(
                f"the feature that {type(self.network).__name__} returns is not the input of its head "
                f"{self.layer_name!r}; it is used as the activation, as OpenOOD's methods do, and W a + b of it as the "
                "logits, which differ from the network's own"
            )
        return _close(output.logits, logits)

    def check(self, output: ModelOutput) -> Tensor:
        """Return the logits z = W a + b after comparing the network's logits with W·(head input) + b.

        The comparison uses the head's own dtype, so that lower precision allows no deviation beyond its rounding.

        Returns:
            (B, C) z, at least float32.

        Raises:
            HeadMismatchError: The logits differ from W a + b by more than rounding.
        """
        weight, bias = head_weights(self.layer)
        weight = weight.detach().flatten(1)
        logits, given = output.logits.detach(), output.head_input.detach()
        if weight.shape != (logits.shape[1], given.shape[1]):
            raise self._mismatch(f"its weight has the shape {tuple(self.layer.weight.shape)}")
        head = _head_of(weight, bias)
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            dtype = output.head_dtype
            own_bias = None if bias is None else bias.detach().to(dtype)
            expected = nn.functional.linear(given.to(dtype), weight.to(dtype), own_bias)
            wide = functional.statistics_dtype(logits.device)
            difference = (logits.to(wide) - expected.to(wide)).abs()
            # Rounding of the sums relative to their terms, bounded by the norms' product, and of the result.
            sums = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * 16 * math.sqrt(given.shape[1])
            result = 2 * max(torch.finfo(kind).eps for kind in (dtype, logits.dtype))
            terms = torch.outer(_norms(given, wide), _norms(weight, wide)) + head.bias.abs().to(wide)
            fine = difference <= sums * terms + result * expected.abs().to(wide)
            # Non-finite values of the network's own have an error of their own.
            finite = logits.isfinite() & given.isfinite().all(1, keepdim=True)
            if not bool((fine | ~finite).all()):
                largest = float(difference[finite].nan_to_num(math.inf).max())
                raise self._mismatch(
                    f"they differ by up to {largest:.3g}, where W a + b is at most {float(expected.abs().max()):.3g}"
                )
            if dtype == head.weight.dtype and output.activation is output.head_input:
                return expected
            activation = at_least_float32(output.activation.detach()).to(head.weight.dtype)
            return nn.functional.linear(activation, head.weight, head.bias)

    def _mismatch(self, how: str) -> HeadMismatchError:
        return HeadMismatchError(
            f"network: the logits of {type(self.network).__name__} are not W a + b of its last linear layer "
            f"{self.layer_name!r} ({type(self.layer).__name__}): {how}. The methods of this package need a linear head: "
            "merge adapters (LoRA) into its weights, and remove quantisation, hooks and whatever follows it; they are "
            "not defined for a cosine head"
        )

    @property
    def layer_name(self) -> str | None:
        """Name of the head within the network (None if it has been replaced)."""
        modules = original(self.network).named_modules()
        return next((name for name, module in modules if module is self.layer), None)

    @property
    def head(self) -> LinearHead:
        """Present weight and bias, detached, at least float32."""
        return _head_of(*head_weights(self.layer))

    def __call__(self, images: Tensor) -> ModelOutput:
        """Run (B, ...) images; the caller sets mode and gradients (see :func:`~.network.frozen`)."""
        seen: list[tuple[Any, Any]] = []
        feature = None
        with _watching([self.layer], lambda layer, given, output: seen.append((given, output))):
            if self._returns_feature:
                logits, feature = _call(self.network, images, return_feature=True)
            else:
                logits = logits_of(self.network, images)
        if len(seen) <= self._call:
            raise HeadMismatchError(
                f"network: its head was called {len(seen)} time(s) for this batch and at least {self._call + 1} time(s) "
                "for the first one; expected the same calls for all images"
            )
        head_input, head_output = seen[self._call]
        activation = head_input = head_input.flatten(1)
        if feature is not None:
            activation = (feature[0] if isinstance(feature, list | tuple) else feature).flatten(1)
        return ModelOutput(logits, activation, head_input, head_output.dtype)


@contextmanager
def _watching(layers: list[nn.Module], note: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    """Call ``note(layer, input, output)`` for each call of a layer in this thread."""
    thread = threading.get_ident()  # another thread may run the same network

    def hook(layer: nn.Module, inputs: tuple[Any, ...], *rest: Any) -> None:
        # The keywords are missing at times, if another thread removes a hook of its own from the same layer.
        *keywords, output = rest
        if threading.get_ident() == thread:
            note(layer, inputs[0] if inputs else keywords and keywords[0].get("input"), output)

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _head_of(weight: Tensor, bias: Tensor | None) -> LinearHead:
    weight = at_least_float32(weight.detach().flatten(1))
    return LinearHead(
        weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight.dtype)
    )


def _call(network: nn.Module, images: Tensor, **keywords: Any) -> Any:
    """Call ``network``; the errors that torch's layers raise are raised again with the shape of the images."""
    try:
        return network(images.clone(), **keywords)  # it may change its input in place
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise RuntimeError(
            f"network: {type(network).__name__} fails on images of shape {tuple(images.shape)}, {images.dtype}: "
            f"{type(error).__name__}: {error}"
        ) from error


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Run ``network`` and return its (B, C) logits, the output or what is called ``logits`` in it."""
    output = _call(network, images)
    found = output.get("logits", output) if isinstance(output, Mapping) else getattr(output, "logits", output)
    name = type(network).__name__
    if not isinstance(found, Tensor) or found.ndim != 2:
        given = (
            f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
        )
        raise TypeError(f"network: {name} returns {given}; expected (B, C) logits")
    if found.shape[1] == 1:
        raise ValueError(
            f"network: {name} has a single logit z; expected two or more, for example (0, z) of a layer with weights (0, w)"
        )
    return found


def _logits_of_one(network: nn.Module, image: Tensor) -> tuple[Tensor, bool]:
    """Return the (1, C) logits of an image, and True if the network fails on it alone and was run on two copies."""
    try:
        return logits_of(network, image), False
    except torch.cuda.OutOfMemoryError:
        raise
    except (TypeError, RuntimeError):  # it may squeeze its output, for example
        return logits_of(network, torch.cat([image, image]))[:1], True


def logits_in_eval_mode(network: nn.Module, images: Tensor) -> Tensor:
    """Return the (B, C) logits of a network in eval mode, without gradients; its state is restored."""
    with frozen(network), torch.no_grad():
        return _logits_of_one(network, images)[0] if len(images) == 1 else logits_of(network, images)


def at_least_float32(values: Tensor) -> Tensor:
    """Return ``values`` in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _warn(text: str) -> None:
    warnings.warn(f"network: {text}", stacklevel=5)


def _norms(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vector_norm(at_least_float32(rows), dim=1, dtype=dtype)


def _nearly_equal(one: Tensor, other: Tensor) -> bool:
    """Compare logits up to rounding, which differs with the number of images."""
    size = float(other.abs().nan_to_num().max()) if other.numel() else 0.0
    rounding = 1e-3 if other.dtype in (torch.float32, torch.float64) else 5e-2
    return torch.allclose(one, other, rtol=rounding, atol=rounding * size, equal_nan=True)


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def _is_linear(module: nn.Module) -> bool:
    if not isinstance(getattr(module, "weight", None), Tensor):  # quantised layers have a method there
        return False
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} and module.groups == 1
    )

"""What is the activation and what is the head, of any network that ends in a linear layer."""

from __future__ import annotations

import inspect
import math
import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .. import equations
from ..errors import HeadMismatch
from .batching import Sizes
from .dataset import global_random_state, undisturbed
from .head import Head, Output, called, head_of, logits_of, statistics_input
from .modes import batch_dependent, frozen, unwrap


class Classifier:
    """A network taken apart into activation and linear head.

    The head is the last linear layer (or 1×1 convolution) whose output is the network's. The activation is
    what a network with OpenOOD's ``return_feature=True`` returns as its feature (the first of a list), and the
    head's input otherwise. Threads may share it if the network is in eval mode and frozen already.

    Args:
        network: returns (B, C) logits, or an object that has them as ``logits``.
        images: (B, ...) to try it on; the first two are used.

    Raises:
        TypeError: ``network`` is not a module, or returns something else.
        ValueError: no linear layer gives the network's output.
        HeadMismatch: one does, but computes something else than W a + b.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: {type(network).__name__} is not a torch.nn.Module")
        self.network: nn.Module = unwrap(network)
        self._layer: Any  # a module with weight and bias
        self.takes_channels_last = True
        """Whether the network takes images in channels-last memory, as far as is known."""
        self.sizes = Sizes()
        images = images[:2].contiguous()
        with undisturbed(), frozen(self.network), torch.no_grad():
            before = global_random_state()
            self._layer, self._call, logits, activation = self._find_head(images.clone())
            self._returns_feature = self._try_return_feature(images.clone(), logits, activation)
            draws = global_random_state() != before
            again, alone = (
                logits_of(self.network, called(self.network, some.clone())) for some in (images, images[:1])
            )
            together = batch_dependent(self.network)
        self.stochastic = draws or not _same_numbers(again, logits)
        """Whether the network says something else of an image each time."""
        apart = self.stochastic or _same_numbers(alone, logits[:1])
        self.keeps_batches_whole = bool(together) or not apart
        """Whether batches must not be cut: what the network says of an image depends on the others."""
        if self.keeps_batches_whole:
            who = f"{together[0]!r} normalises" if together else f"{type(self.network).__name__} reckons"
            self._warn(
                f"{who} by the statistics of the batch even in eval mode, so that scores depend on which images the loader "
                "puts together; batches are kept as they come"
            )
        if self.stochastic:
            self._warn(
                f"{type(self.network).__name__} gives other numbers each time, even in eval mode (dropout that stays on?); "
                "scores do so, too, and nothing is kept"
            )

    @staticmethod
    def _warn(what: str) -> None:
        warnings.warn(f"network: {what}", UserWarning, stacklevel=5)

    def _find_head(self, images: Tensor) -> tuple[nn.Module, int, Tensor, Tensor]:
        calls: list[tuple[nn.Module, Tensor, Tensor]] = []
        thread = threading.get_ident()

        def note(module: nn.Module, inputs: tuple[Any, ...], *rest: Any) -> None:
            given, output = _given(inputs, rest)
            mine = threading.get_ident() == thread  # another may run the same network
            if mine and isinstance(given, Tensor) and isinstance(output, Tensor) and output.ndim > 1:
                calls.append((module, given.detach().clone(), output.detach().clone()))

        layers = [module for module in self.network.modules() if _is_linear(module)]
        handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
        try:
            logits = logits_of(self.network, called(self.network, images))
        finally:
            for handle in handles:
                handle.remove()
        refused: HeadMismatch | None = None
        for number, (layer, given, output) in reversed(list(enumerate(calls))):
            if output.flatten(1).shape != logits.shape or not _close(
                output.flatten(1).to(logits.dtype), logits
            ):
                continue
            self._layer, self._call = layer, sum(other is layer for other, _, _ in calls[:number])
            given = given.flatten(1)
            try:
                self.check(Output(logits, given, given, output.dtype))
            except HeadMismatch as error:
                refused = refused or error
                continue
            return layer, self._call, logits, given
        if refused is not None:
            raise refused
        raise ValueError(
            f"network: {type(self.network).__name__} has no linear head that shows. The methods of this package need "
            f"a network whose output is that of a linear layer; none of the {len(calls)} calls of its {len(layers)} "
            "linear layers gives its output"
        )

    def _try_return_feature(self, images: Tensor, logits: Tensor, activation: Tensor) -> bool:
        if "return_feature" not in inspect.signature(self.network.forward).parameters:
            return False
        self._returns_feature = True
        try:
            output = self(images)
            self.check(output)
        except Exception:
            return False  # a wrapper whose backbone does not know the argument, or returns something else
        if output.activation.shape == activation.shape and not _close(output.activation, output.head_input):
            warnings.warn(
                f"network: what {type(self.network).__name__} returns as its feature is not what its head "
                f"{self.layer_name!r} was applied to; the feature is taken for the activation, as OpenOOD's methods do, "
                "and the head's W a + b of it for the logits, which are not the network's own",
                UserWarning,
                stacklevel=4,
            )
        return (
            output.activation.shape == activation.shape
            and output.logits.shape == logits.shape
            and _close(output.logits, logits)
        )

    def check(self, output: Output) -> Tensor:
        """The logits z = W a + b of ``output``'s activation, having seen that the network's own are the head's of what the
        head was applied to (the activation, unless the network returns another feature).

        What the network returned is held against the linear layer's product in the head's own arithmetic, so that
        lower precision allows no larger deviation than its rounding of the result.

        Args:
            output: of one call of the network.

        Returns:
            (B, C) z, at least float32.

        Raises:
            HeadMismatch: the network's logits differ from W a + b by more than rounding.
        """
        weight, bias = self._layer.weight.detach(), self._layer.bias
        logits, given = output.logits.detach(), output.head_input.detach()
        if weight.flatten(1).shape != (logits.shape[1], given.shape[1]):
            raise self._mismatch(f"its weight has the shape {tuple(weight.shape)}")
        head = self.head
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            dtype = output.head_output
            expected = nn.functional.linear(
                given.to(dtype),
                weight.flatten(1).to(dtype),
                None if bias is None else bias.detach().to(dtype),
            )
            wide = equations.statistics_dtype(logits.device)
            difference = (logits.to(wide) - expected.to(wide)).abs()
            # Of the sums, relative to their terms, of which the norms' product is a bound; and of the result.
            sums = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * 16 * math.sqrt(given.shape[1])
            result = 2 * max(torch.finfo(kind).eps for kind in (dtype, logits.dtype))
            terms = torch.outer(_norms(given, wide), _norms(weight.flatten(1), wide)) + head.bias.abs().to(
                wide
            )
            fine = difference <= sums * terms + result * expected.abs().to(wide)
            # What is not finite in the network's own numbers has an error of its own.
            own = logits.isfinite() & given.isfinite().all(1, keepdim=True)
            if not bool((fine | ~own).all()):
                largest = float(difference[own].nan_to_num(math.inf).max())
                raise self._mismatch(
                    f"they differ by up to {largest:.3g}, where W a + b is at most {float(expected.abs().max()):.3g}"
                )
            if dtype == head.weight.dtype and output.activation is output.head_input:
                return expected
            activation = statistics_input(output.activation.detach()).to(head.weight.dtype)
            return nn.functional.linear(activation, head.weight, head.bias)

    def _mismatch(self, how: str) -> HeadMismatch:
        return HeadMismatch(
            f"network: the logits of {type(self.network).__name__} are not W a + b of its last linear layer "
            f"{self.layer_name!r} ({type(self._layer).__name__}): {how}. The methods of this package need a linear head: "
            "merge adapters (LoRA) into its weights, take quantisation, hooks and whatever follows it off; for a "
            "cosine head they are not defined"
        )

    @property
    def layer_name(self) -> str | None:
        """The head's name within the network (within the one that was compiled); None where it has been replaced."""
        network = getattr(self.network, "_orig_mod", self.network)
        return next((name for name, module in network.named_modules() if module is self._layer), None)

    @property
    def head(self) -> Head:
        """The head's weight and bias as they are now, detached, in the statistics' precision at least float32."""
        return head_of(self._layer)

    def __call__(self, images: Tensor) -> Output:
        """Logits and activation of (B, ...) images; the caller sets mode and gradients (see :func:`frozen`)."""
        seen: list[tuple[Any, Any]] = []
        thread = threading.get_ident()

        def note(module: nn.Module, inputs: tuple[Any, ...], *rest: Any) -> None:
            if threading.get_ident() == thread:  # another may run the same network
                seen.append(_given(inputs, rest))

        handle = self._layer.register_forward_hook(note, with_kwargs=True)
        try:
            feature = None
            if self._returns_feature:
                logits, feature = called(self.network, images, return_feature=True)
            else:
                logits = logits_of(self.network, called(self.network, images))
        finally:
            handle.remove()
        if len(seen) <= self._call:
            raise RuntimeError(
                f"network: its head was called {len(seen)} times for one batch and {self._call + 1} times or more when "
                "it was looked for; expected the same calls for all images"
            )
        head_input, head_output = seen[self._call]
        activation = head_input = head_input.flatten(1)
        if feature is not None:
            activation = (feature[0] if isinstance(feature, list | tuple) else feature).flatten(1)
            if _same_tensor(activation, head_input):
                activation = head_input
        return Output(logits, activation, head_input, head_output.dtype)


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    return (
        one is other
        or (one.data_ptr(), one.shape, one.stride(), one.dtype)
        == (other.data_ptr(), other.shape, other.stride(), other.dtype)
    )  # fmt: skip


def _norms(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vector_norm(
        rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1, dtype=dtype
    )


def _given(inputs: tuple[Any, ...], rest: tuple[Any, ...]) -> tuple[Any, Any]:
    """A layer's input and output, of a forward hook's arguments.

    The keywords lack at times where another thread takes a hook of its own off the same layer.
    """
    *keywords, output = rest
    return inputs[0] if inputs else (keywords[0].get("input") if keywords else None), output


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether logits are the same but for rounding, which differs with the number of images."""
    size = float(other.abs().nan_to_num().max()) if other.numel() else 0.0
    rounding = 1e-3 if other.dtype in (torch.float32, torch.float64) else 5e-2
    return torch.allclose(one, other, rtol=rounding, atol=rounding * size, equal_nan=True)


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def _is_linear(module: nn.Module) -> bool:
    if not isinstance(getattr(module, "weight", None), Tensor):  # quantised layers have it as a method
        return False
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} and module.groups == 1
    )

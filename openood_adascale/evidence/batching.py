"""How many images go through a network at a time: as many as its device's memory and caches hold, or as pay."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import NotFinite

CPU_BATCH = 32
"""Images per thread that a CPU works on at a time: its caches hold what they need, and memory stays small."""
LARGEST = 4096
"""Images that are tried at a time, at most, where the number that pays is looked for."""
_GAIN = 1.05  # by which twice as many have to be faster
_ROUNDS = 3

R = TypeVar("R")


class Sizes:
    """What was found out about a network on its device, for passes with and without gradient each."""

    def __init__(self) -> None:
        self.fits: dict[bool, int] = {}
        """How many images fit, where more did not."""
        self.pays: dict[bool, int] = {}
        """How many are fastest."""


def in_parts(
    images: Tensor,
    run: Callable[[Tensor], R],
    sizes: Sizes,
    *,
    gradient: bool,
    whole: bool,
    batch: str | int,
) -> list[R]:
    """What ``run`` gives for each part of a batch, in order. A part for which a GPU's memory is too small is halved, as
    often as needed, and the size that fits is kept for what comes.

    Args:
        images: (B, ...), on the device.
        run: a pass over some of them.
        sizes: what is known already; added to.
        gradient: whether ``run`` asks for one.
        whole: whether the batch must not be cut.
        batch: images at a time: ``loader``, ``auto`` or a number.

    Raises:
        MemoryError: one image, or a batch that must not be cut, does not fit.
        NotFinite: as ``run``, counted in the batch.
    """
    size = len(images) if whole else min(len(images), _wanted(images, run, sizes, gradient, batch))
    found: list[R] = []
    start, too_many = 0, 0
    while start < len(images):
        part = images[start : start + size]
        try:
            found.append(run(part))
        except NotFinite as error:
            raise error.shifted(start) from None
        except torch.cuda.OutOfMemoryError as error:
            if whole or len(part) == 1:
                raise MemoryError(too_large(images, whole, error)) from error
            too_many, size = too_many or len(part), max(1, len(part) // 2)
        else:
            start += len(part)
            if too_many:
                sizes.fits[gradient] = size
                _say(images, too_many, size, gradient)
                too_many = 0
            continue
        # Not in the handler, which keeps what did not fit alive.
        torch.cuda.empty_cache()
    return found


def _say(images: Tensor, too_many: int, size: int, gradient: bool) -> None:
    how = " with gradient" if gradient else ""
    warnings.warn(
        f"batch: {too_many} images at a time{how} are too many for the memory of {images.device}; going on with {size}",
        UserWarning,
        stacklevel=4,
    )


def _wanted(
    images: Tensor, run: Callable[[Tensor], R], sizes: Sizes, gradient: bool, batch: str | int
) -> int:
    if batch == "auto":
        if gradient not in sizes.pays:
            sizes.pays[gradient] = size_that_pays(images[:1], run)
        return sizes.pays[gradient]
    size = batch if isinstance(batch, int) else len(images)
    if images.device.type == "cpu" and batch == "loader":
        size = min(size, CPU_BATCH * torch.get_num_threads())
    return min(size, sizes.fits.get(gradient, size))


def size_that_pays(image: Tensor, run: Callable[[Tensor], R], largest: int = LARGEST) -> int:
    """The largest number of images at a time that is worth it: twice as many would be less than 5 % faster, or not fit.

    Args:
        image: (1, ...) one, on the device.
        run: a pass over some.
        largest: that is tried.
    """
    best, size = 1, 1
    fastest = float("inf")
    while size <= largest:
        try:
            seconds = _seconds_per_image(image.expand(size, *image.shape[1:]).contiguous(), run)
        except torch.cuda.OutOfMemoryError:
            break
        if seconds * _GAIN > fastest and size > 8:  # below that, the overhead of a call hides what is gained
            break
        if seconds < fastest:
            best, fastest = size, seconds
        size *= 2
    if image.device.type == "cuda":
        torch.cuda.empty_cache()
    return best


def _seconds_per_image(images: Tensor, run: Callable[[Tensor], R]) -> float:
    times = []
    for _ in range(_ROUNDS + 1):
        _synchronise(images)
        start = time.perf_counter()
        run(images)
        _synchronise(images)
        times.append(time.perf_counter() - start)
    return min(times[1:]) / len(images)


def _synchronise(images: Tensor) -> None:
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)


def too_large(images: Tensor, whole: bool, error: Exception) -> str:
    """What is to be said where a GPU's memory is too small for an image, or for a batch that must stay ``whole``."""
    shape = " × ".join(map(str, images.shape[1:]))
    what = (
        f"a batch of {len(images)} images ({shape}), which the network's batch statistics keep from being cut,"
        if whole
        else f"one image ({shape})"
    )
    wanted = "smaller batches in the loader" if whole else "smaller images, a lower precision, or more memory"
    return f"network: {what} does not fit the memory of {images.device}; expected {wanted} ({str(error).splitlines()[0]})"

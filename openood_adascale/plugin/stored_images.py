"""Tokens that stand for images in a store.

A token can be moved, sliced, counted and given to the network; whatever else a method does with it shows that the method
needs the image, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor


class NeedsMore(Exception):
    """A method asked for something that a store does not have."""


class Refusals:
    """What was asked for in vain; noted, since a method may swallow the exception."""

    def __init__(self) -> None:
        self.reason = ""

    def refuse(self, what: str) -> NoReturn:
        """Note it, and raise :class:`NeedsMore`."""
        self.reason = self.reason or what
        raise NeedsMore(what)


class StoredImages(torch.Tensor):
    """(B,) tokens that stand for B images."""

    refusals: Refusals

    @classmethod
    def of(cls, tokens: Tensor, refusals: Refusals) -> StoredImages:
        """Tokens from their (B,) numbers."""
        made = tokens.as_subclass(cls)
        made.refusals = refusals
        return made

    @property
    def numbers(self) -> Tensor:
        """(B,) int64."""
        return self.as_subclass(torch.Tensor)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        owner = getattr(getattr(func, "__self__", None), "__name__", "")
        asked = owner if name == "__get__" else name
        given = next((a for a in (*args, *kwargs.values()) if isinstance(a, StoredImages)), None)
        refusals = getattr(given, "refusals", None) or Refusals()
        if asked == "as_subclass":
            return super().__torch_function__(func, types, args, kwargs)
        if asked not in _ALLOWED or not isinstance(given, StoredImages) or given is not args[0]:
            refusals.refuse(f"it looks at the images themselves ({asked})")
        return _ALLOWED[asked](given, refusals, *args[1:], **kwargs)


def _moved(images: StoredImages, refusals: Refusals, *args: Any, **kwargs: Any) -> StoredImages:
    for value in (*args, *kwargs.values()):
        if value is torch.float32 or not isinstance(value, torch.dtype | torch.memory_format | Tensor):
            continue
        refusals.refuse(f"it changes the images ({value})")
    device = next((v for v in (*args, kwargs.get("device")) if isinstance(v, str | torch.device | int)), None)
    if isinstance(device, bool) or device is None:
        return images
    with torch._C.DisableTorchFunctionSubclass():
        return StoredImages.of(images.as_subclass(torch.Tensor).to(device), refusals)


def _same(images: StoredImages, refusals: Refusals, *args: Any, **kwargs: Any) -> StoredImages:
    return images


def _picked(images: StoredImages, refusals: Refusals, index: Any) -> StoredImages:
    if not isinstance(index, slice | list | Tensor):
        refusals.refuse("it takes the images apart")
    with torch._C.DisableTorchFunctionSubclass():
        return StoredImages.of(images.as_subclass(torch.Tensor)[index], refusals)


def _size(images: StoredImages, refusals: Refusals, dim: Any = None) -> int:
    if dim != 0:
        refusals.refuse("it asks for the images' size")
    return _count(images, refusals)


def _count(images: StoredImages, refusals: Refusals) -> int:
    with torch._C.DisableTorchFunctionSubclass():
        return len(images.as_subclass(torch.Tensor))


def _device(images: StoredImages, refusals: Refusals) -> torch.device:
    with torch._C.DisableTorchFunctionSubclass():
        return images.as_subclass(torch.Tensor).device


class _Shape:
    def __init__(self, images: StoredImages, refusals: Refusals) -> None:
        self._images, self._refusals = images, refusals

    def __getitem__(self, index: Any) -> int:
        return _size(self._images, self._refusals, index)

    def __iter__(self) -> Iterator[int]:
        self._refusals.refuse("it asks for the images' shape")

    __len__ = __iter__


_ALLOWED: dict[str, Any] = {
    "to": _moved,
    "cuda": lambda images, refusals, device=None, **rest: _moved(
        images, refusals, "cuda" if device is None else device
    ),
    "cpu": lambda images, refusals, **rest: _moved(images, refusals, "cpu"),
    "float": _same,
    "detach": _same,
    "clone": _same,
    "contiguous": _same,
    "__getitem__": _picked,
    "__len__": _count,
    "size": _size,
    "shape": _Shape,
    "device": _device,
    "is_cuda": lambda images, refusals: _device(images, refusals).type == "cuda",
}

"""A network and loaders that answer from a store: for methods that need nothing of an image but z and a.

The images are there only as tokens. A token can be moved, sliced, counted and given to the network; whatever else a
method does with it shows that the method needs the image, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import data

from ..evidence.rows import Rows

NETWORK_ATTRIBUTES = frozenset({"fc", "get_fc", "get_fc_layer", "feature_size"})
"""What methods may ask a network for; the network's own answers."""


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


class _Parameter:
    """Of a network's parameters, where and what they are."""

    def __init__(self, parameter: Tensor, refusals: Refusals) -> None:
        self.device, self.dtype = parameter.device, parameter.dtype
        self._refusals = refusals

    def __getattr__(self, name: str) -> Any:
        self._refusals.refuse(f"it looks into the network (parameters().{name})")


class StoredNetwork(nn.Module):
    """Answers as the network did, for tokens of :class:`StoredLoader`."""

    def __init__(self, network: nn.Module, refusals: Refusals) -> None:
        super().__init__()
        # Not as a submodule: what is to be seen of it is said below.
        self.__dict__["_network"] = network
        self.__dict__["_refusals"] = refusals
        self.__dict__["_rows"] = []
        self.training = False

    def enter(self, rows: Rows) -> int:
        """Have it know some rows; their first token."""
        known: list[tuple[int, Rows]] = self._rows
        first = known[-1][0] + known[-1][1].count if known else 0
        known.append((first, rows))
        return first

    def forward(self, x: Any, return_feature: Any = False, return_feature_list: Any = False) -> Any:
        """z, or (z, a), of tokens of one loader."""
        if not isinstance(x, StoredImages):
            self._refusals.refuse("it makes images of its own")
        if return_feature_list:
            self._refusals.refuse("it needs features of inner layers (return_feature_list)")
        numbers = x.numbers.cpu()
        logits, activations = [], []
        for first, rows in self._rows:
            here = (numbers >= first) & (numbers < first + rows.count)
            if bool(here.any()):
                encoded, _ = rows.encoded((numbers[here] - first).tolist())
                logits.append(encoded.logits)
                activations.append(encoded.activation)
        if len(logits) != 1 or len(logits[0]) != len(numbers):
            self._refusals.refuse("it mixes images of several data sets")
        return (logits[0], activations[0]) if return_feature else logits[0]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__dict__["_network"], name)
        if name not in NETWORK_ATTRIBUTES:
            self.__dict__["_refusals"].refuse(f"it looks into the network ({name})")
        return found

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """Where the network's are; nothing else of them is to be had."""
        for parameter in self._network.parameters():
            yield _Parameter(parameter, self._refusals)

    def train(self, mode: bool = True) -> StoredNetwork:
        """Only eval mode is to be had."""
        if mode:
            self._refusals.refuse("it needs the network in training mode")
        return self

    def _stays(self, *args: Any, **kwargs: Any) -> StoredNetwork:
        return self

    cuda = to = cpu = float = _stays


def _refused(name: str) -> Any:
    def method(self: StoredNetwork, *args: Any, **kwargs: Any) -> Any:
        self._refusals.refuse(f"it looks into the network ({name})")

    return method


for _name in (
    "modules", "named_modules", "children", "named_children", "named_parameters", "buffers", "named_buffers",
    "state_dict", "load_state_dict", "zero_grad", "requires_grad_", "apply", "half", "double", "register_forward_hook",
    "register_forward_pre_hook", "register_full_backward_hook", "get_submodule", "get_parameter", "__deepcopy__",
    "__reduce_ex__",
):  # fmt: skip
    setattr(StoredNetwork, _name, _refused(_name))


class _Tokens(data.Dataset[int]):
    def __init__(self, dataset: Any, first: int, rows: Rows) -> None:
        self._dataset, self._first, self._rows = dataset, first, rows

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> int:
        return index

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_dataset"], name)


class StoredLoader(data.DataLoader[Any]):
    """A loader's batches, in its order, with tokens for images; draws random numbers as that loader does.

    Args:
        loader: PyTorch's, of images in a store.
        rows: they.
        network: what is to know the tokens.
        refusals: where what is asked for in vain is noted.
        description: for the bar.
    """

    def __init__(
        self, loader: Any, rows: Rows, network: StoredNetwork, refusals: Refusals, description: str
    ) -> None:
        first = network.enter(rows)

        def batch(indices: list[int]) -> dict[str, Any]:
            numbers = torch.tensor(indices)
            return {
                "data": StoredImages.of(numbers + first, refusals),
                "label": torch.from_numpy(rows.labels(indices)),
            }

        super().__init__(
            _Tokens(loader.dataset, first, rows),
            batch_size=loader.batch_size,
            sampler=loader.sampler,
            drop_last=loader.drop_last,
            generator=loader.generator,
            collate_fn=batch,
        )
        self._rows, self._description = rows, description

    def fill(self) -> None:
        """Have the network run for what the store lacks of these images."""
        self._rows.fill((), None, self._description)

    def __iter__(self) -> Any:
        self.fill()
        return super().__iter__()

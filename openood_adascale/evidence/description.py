"""What an object consists of, as text that is the same in every process: class, state and, if no library's, code."""

from __future__ import annotations

import hashlib
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Unknown(Exception):
    """Something whose content cannot be told."""


def described(value: Any) -> str:
    """What ``value`` consists of, without addresses.

    Raises:
        Unknown: that does not show.
    """
    return "".join(_describe(value, ()))


def _describe(value: Any, within: tuple[int, ...]) -> Iterator[str]:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield f"{type(value).__name__} {value!r};"
        return
    if id(value) in within:
        yield "itself;"
        return
    within = (*within, id(value))
    if isinstance(value, Tensor | np.ndarray):
        array = torch.as_tensor(value, device="cpu").detach().contiguous()
        content = array.flatten().view(torch.uint8).numpy().data
        yield f"{array.dtype} {tuple(array.shape)} {hashlib.blake2b(content, digest_size=16).hexdigest()};"
    elif isinstance(value, types.ModuleType):
        yield f"{value.__name__};"
    elif isinstance(value, type):
        yield from _class(value, within)
    elif isinstance(value, Enum):
        yield f"{qualified(type(value))}.{value.name};"
    elif isinstance(value, types.FunctionType):
        yield from _function(value, within)
    elif isinstance(value, types.MethodType):
        yield f"{value.__name__} of;"
        yield from _describe(value.__self__, within)
    elif isinstance(value, set | frozenset):
        yield from _each(sorted(map(described, value)), within)
    elif isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        yield from _each([item for pair in value.items() for item in pair], within)
    elif type(value) in (list, tuple):
        yield from _each(value, within)
    else:
        yield from _pickled(value, within)


def _each(values: Iterable[Any], within: tuple[int, ...]) -> Iterator[str]:
    yield "("
    for value in values:
        yield from _describe(value, within)
    yield ")"


def _pickled(value: Any, within: tuple[int, ...]) -> Iterator[str]:
    """As pickle sees an object: its class and all of its state, that of C code included."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception as error:
        raise Unknown(str(error)) from error
    if isinstance(reduced, str):
        yield f"{type(value).__module__}.{reduced};"
        return
    make, arguments, *rest = reduced
    yield from _describe(type(value), within)
    yield f"{getattr(make, '__module__', '')}.{getattr(make, '__qualname__', make)};"
    state, items, pairs = [*rest, None, None, None][:3]
    yield from _each([arguments, state, list(items or ()), list(pairs or ())], within)


def _function(function: types.FunctionType, within: tuple[int, ...]) -> Iterator[str]:
    """Its code, and of those not of a library the globals that the code names, too."""
    yield f"{function.__module__}.{function.__qualname__};{_code(function.__code__)};{_edited(function.__module__)}"
    closure = [cell.cell_contents for cell in function.__closure__ or ()]
    used: list[Any] = []
    if not _of_a_library(function.__module__):
        used = [function.__globals__.get(name) for name in function.__code__.co_names]
    yield from _each(
        [function.__defaults__ or (), function.__kwdefaults__ or {}, closure, used],
        within,
    )


def _class(kind: type, within: tuple[int, ...]) -> Iterator[str]:
    """Its name, and what it consists of unless it is a library's."""
    yield f"{qualified(kind)};{_edited(kind.__module__)}"
    if _of_a_library(kind.__module__):
        return
    for base in kind.__mro__:
        if _of_a_library(base.__module__):
            yield f"{qualified(base)};"
            continue
        for name, value in sorted(vars(base).items()):
            if name in ("__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__"):
                continue
            yield f"{name}:"
            inner = getattr(value, "__func__", getattr(value, "fget", value))
            yield from _describe(inner, within)


def code_of(kind: type) -> str:
    """What the functions of a class do, those of its bases included; libraries' classes by their names."""
    told = []
    for base in kind.__mro__:
        told.append(qualified(base))
        if _of_a_library(base.__module__) and not _edited(base.__module__):
            continue
        for name, value in sorted(vars(base).items()):
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(function, types.FunctionType):
                told.append(f"{name} {_code(function.__code__)}")
    return " ".join(told)


# What changes with their versions only.
_LIBRARIES = {
    "torch",
    "torchvision",
    "timm",
    "PIL",
    "numpy",
    "cv2",
    "openood",
    "scipy",
    "skimage",
    "albumentations",
}


def _of_a_library(module: str | None) -> bool:
    top = (module or "").partition(".")[0]
    return top in _LIBRARIES or (top in sys.stdlib_module_names and top != "__main__")


def _edited(module: str | None) -> str:
    """A digest of a module's file where it is of a checkout, which people edit: OpenOOD's."""
    if (module or "").partition(".")[0] != "openood":
        return ""
    path = getattr(sys.modules.get(module or ""), "__file__", None)
    try:
        state = os.stat(path or "")
        return _digest_of_file(path or "", state.st_size, state.st_mtime_ns)
    except OSError:
        return "no file;"


@lru_cache
def _digest_of_file(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return f"{hashlib.blake2b(file.read(), digest_size=8).hexdigest()};"


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _code(value)
    # The order of a set's members differs from process to process.
    return f"frozenset({sorted(map(repr, value))})" if isinstance(value, frozenset) else repr(value)


def _code(code: types.CodeType) -> str:
    constants = [_constant(constant) for constant in code.co_consts]
    return hashlib.blake2b(
        code.co_code + repr((constants, code.co_names)).encode(), digest_size=8
    ).hexdigest()


def qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"

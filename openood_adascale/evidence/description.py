"""What an object consists of, as text that is the same in every process: class, state and, if no library's, code.

Of code, what it names counts, too: other functions, constants and modules that are no library's, whatever is named in them,
and so on. Where something does not show its content, the whole is not told.
"""

from __future__ import annotations

import hashlib
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bytecode import digest_of, named_in


class Unknown(Exception):
    """Something whose content cannot be told."""


def described(value: Any) -> str:
    """What ``value`` consists of, without addresses.

    Raises:
        Unknown: that does not show.
    """
    return "".join(_Telling().tell(value))


def described_classes(kinds: Iterable[type]) -> str:
    """:func:`described` of classes, in this order."""
    telling = _Telling()
    return "".join(text for kind in kinds for text in telling.tell(kind))


# What changes with their versions only.
_LIBRARIES = {
    "torch",
    "torchvision",
    "timm",
    "PIL",
    "numpy",
    "cv2",
    "openood",
    "openood_adascale",
    "scipy",
    "skimage",
    "albumentations",
}
_SIMPLE = (bool, int, float, complex, str, bytes)
_MANY = 256
"""From so many members on, lists of words or numbers are told by a digest."""
_OF_NO_ACCOUNT = frozenset(
    {"__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__", "__annotations__",
     "__annotate__", "__annotate_func__", "__annotations_cache__", "__abstractmethods__", "_abc_impl", "__slots__",
     "__parameters__", "__orig_bases__", "__match_args__"}
)  # fmt: skip


class _Telling:
    """One description; what comes again is told by its number, so that circles end and nothing is told twice."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, Any]] = {}  # with the object, which has to live until the end
        self._modules: set[tuple[Any, ...]] = set()

    def tell(self, value: Any) -> Iterator[str]:
        if value is None or isinstance(value, _SIMPLE):
            yield f"{type(value).__name__} {value!r};"
            return
        if isinstance(value, types.ModuleType):
            yield f"{value.__name__};"
            return
        if id(value) in self._seen:
            yield f"again {self._seen[id(value)][0]};"
            return
        self._seen[id(value)] = (len(self._seen), value)
        yield from self._tell_new(value)

    def _tell_new(self, value: Any) -> Iterator[str]:
        if isinstance(value, Tensor | np.ndarray):
            yield _array(value)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, Enum):
            yield f"{qualified(type(value))}.{value.name};"
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.MethodType):
            yield "method of;"
            yield from self._each([value.__self__, value.__func__])
        elif isinstance(value, staticmethod | classmethod):
            yield from self._each([type(value).__name__, value.__func__])
        elif isinstance(value, property):
            yield from self._each([value.fget, value.fset, value.fdel])
        elif isinstance(value, set | frozenset):
            yield from self._each(sorted(map(described, value)), type(value).__name__)
        elif isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
            yield from self._each([item for pair in value.items() for item in pair], type(value).__name__)
        elif type(value) in (list, tuple):
            yield from self._each(value, type(value).__name__)
        else:
            yield from self._pickled(value)

    def _each(self, values: Iterable[Any], kind: str = "") -> Iterator[str]:
        values = list(values)
        if len(values) >= _MANY and all(map(_is_plain, values)):
            digest = hashlib.blake2b(digest_size=16)
            for value in values:
                digest.update(repr(value).encode())
            yield f"{kind} {len(values)} {digest.hexdigest()};"
            return
        yield f"{kind}("
        for value in values:
            yield from self.tell(value)
        yield ")"

    def _pickled(self, value: Any) -> Iterator[str]:
        """As pickle sees an object: its class and all of its state, that of C code included."""
        # Some keep a part of it, or what they wrap, from pickle; a partial has attributes only since someone asked for them.
        own = _says_itself_how(type(value))
        beside = [getattr(value, "__dict__", {}), getattr(value, "__wrapped__", None)] if own else None
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            raise Unknown(str(error)) from error
        if isinstance(reduced, str):
            yield f"{type(value).__module__}.{reduced};"
            return
        make, arguments, *rest = reduced
        yield from self.tell(type(value))
        yield f"{getattr(make, '__module__', '')}.{getattr(make, '__qualname__', make)};"
        state, items, pairs = [*rest, None, None, None][:3]
        yield from self._each([arguments, state, list(items or ()), list(pairs or ())])
        if beside:
            yield from self._each(beside)

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        """Its code and, of those not of a library, whatever the code names, too."""
        library = _of_a_library(function.__module__)
        where = f"{function.__module__}." if library else ""
        yield f"{where}{function.__qualname__};{digest_of(function.__code__)};{_edited(function.__module__)}"
        closure = [_content(cell) for cell in function.__closure__ or ()]
        yield from self._each(
            [function.__defaults__ or (), function.__kwdefaults__ or {}, closure, vars(function)]
        )
        if library:
            return
        names, attributes = named_in(function.__code__)
        for name in names:
            if name in function.__globals__:
                yield f"{name}:"
                yield from self._global(function.__globals__[name], attributes)

    def _global(self, value: Any, attributes: Iterable[str]) -> Iterator[str]:
        """What some code names; of a module that is no library's, what the code may take from it."""
        yield from self.tell(value)
        if not isinstance(value, types.ModuleType) or _of_a_library(value.__name__):
            return
        if (id(value), *attributes) in self._modules:
            return
        self._modules.add((id(value), *attributes))
        for name in attributes:
            found = vars(value).get(name)
            if found is not None and found is not value:
                yield f"{name}:"
                yield from self._global(found, attributes)

    def _class(self, kind: type) -> Iterator[str]:
        """What it consists of; of a library's its name, and what others have put into it."""
        if not _of_a_library(kind.__module__):
            yield f"{kind.__qualname__};"
        for base in kind.__mro__:
            library = _of_a_library(base.__module__)
            yield f"{qualified(base)};{_edited(base.__module__)}" if library else "own;"
            for name, value in sorted(vars(base).items()):
                if name in _OF_NO_ACCOUNT or (library and not _put_in(value, base)):
                    continue
                yield f"{name}:"
                yield from self._member(value)

    def _member(self, value: Any) -> Iterator[str]:
        if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            yield "slot;"
        else:
            yield from self.tell(value)


def _is_plain(value: Any) -> bool:
    """A word, a number, or a tuple of these."""
    return type(value) in (str, int, float) or (
        type(value) is tuple and all(type(part) in (str, int, float) for part in value)
    )


def _array(value: Tensor | np.ndarray) -> str:
    array = torch.as_tensor(value, device="cpu").detach().contiguous()
    content = array.flatten().view(torch.uint8).numpy().data
    return f"{array.dtype} {tuple(array.shape)} {hashlib.blake2b(content, digest_size=16).hexdigest()};"


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def _put_in(value: Any, kind: type) -> bool:
    """Whether somebody has put a function of his own into a library's class."""
    function = getattr(value, "__func__", getattr(value, "fget", value))
    if not isinstance(function, types.FunctionType):
        return False
    module = function.__module__ or ""
    # This package sends .cuda() elsewhere, which changes no numbers.
    return not _of_a_library(module) and module.partition(".")[0] != "openood_adascale"


def _says_itself_how(kind: type) -> bool:
    """Whether a class, no library's, says itself how pickle is to see its objects, or is a wrapper in C."""
    own = any(
        getattr(kind, name, None) is not getattr(object, name, None)
        for name in ("__reduce_ex__", "__reduce__", "__getstate__")
    )
    return own and (not _of_a_library(kind.__module__) or kind.__module__ == "functools")


def _of_a_library(module: str | None) -> bool:
    """Whether a module changes with its version only: the known libraries', Python's own and whatever is installed."""
    top = (module or "").partition(".")[0]
    if top == "__main__":
        return False
    return top in _LIBRARIES or top in sys.stdlib_module_names or _is_installed(top)


def _is_installed(top: str) -> bool:
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    folder, name = os.path.split(file)
    return "site-packages" in file or _holds_installed(
        os.path.dirname(folder) if name.startswith("__init__.") else folder
    )


@cache
def _holds_installed(folder: str) -> bool:
    """Whether packages were installed there: pip (``--target``, too), conda and Linux put their metadata beside them."""
    try:
        return bool(folder) and any(name.endswith(".dist-info") for name in os.listdir(folder))
    except OSError:
        return False


def _edited(module: str | None) -> str:
    """A digest of a module's file: of OpenOOD's and this package's, which may be checkouts that people edit, and of
    installed ones whose version nobody looks at."""
    top = (module or "").partition(".")[0]
    if top not in ("openood", "openood_adascale") and (top in _LIBRARIES or not _is_installed(top)):
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


def qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"

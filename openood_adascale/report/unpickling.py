"""An unpickler for arrays of numbers that executes nothing from the pickle.

A pickle is a program. Only the names that arrays and tensors of numbers need are allowed here, and each is replaced by
code of this module that rebuilds plain numbers. Any other name is an error.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import re
from collections.abc import Callable
from math import prod
from typing import IO, Any

import numpy as np

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "BoolStorage": "?", "ByteStorage": "<u1", "CharStorage": "<i1", "ShortStorage": "<i2", "IntStorage": "<i4",
    "LongStorage": "<i8", "FloatStorage": "<f4", "DoubleStorage": "<f8",
}  # fmt: skip


class _Dtype:
    """Replacement for a pickled ``numpy.dtype`` of numbers or booleans."""

    __slots__ = ("value",)

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
            raise pickle.UnpicklingError(f"an array of dtype {code!r}; expected numbers or booleans")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.value = self.value.newbyteorder("<" if state[1] == "|" else state[1])


def _array(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(data, dtype.value).reshape(shape, order="F" if order == "F" else "C")


def _storage(data: bytes) -> np.ndarray:
    """Read a tensor's values: five small pickles (the fourth has type and length), then the raw numbers.

    ``torch.load`` could execute such bytes even with ``weights_only=True`` before PyTorch 2.6.
    """
    stream = io.BytesIO(data)
    magic, version, system, (kind, code, *_), _ = (_StorageUnpickler(stream).load() for _ in range(5))
    if (magic, version, system["little_endian"], kind) != (_TORCH_MAGIC, 1001, True, "storage"):
        raise pickle.UnpicklingError("a tensor's values are not in torch's format")
    if code not in _STORAGES.values():
        raise pickle.UnpicklingError(f"a tensor of type {code!r}; expected numbers or booleans")
    count = int.from_bytes(stream.read(8), "little")
    return np.frombuffer(data, np.dtype(code), count, stream.tell())


def _tensor(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> np.ndarray:
    if stride != tuple(prod(size[axis + 1 :]) for axis in range(len(size))):
        raise pickle.UnpicklingError(f"a tensor of strides {stride}; expected a contiguous one")
    return storage[offset : offset + prod(size)].reshape(size)


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy._core.numeric", "_frombuffer"): _array,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): lambda *_: {},
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class NumbersUnpickler(pickle.Unpickler):
    """Unpickler for OpenOOD's score files, which have pickle protocol 5. Tensors become arrays.

    A name that such files do not contain is an error, raised before anything is imported.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._file = file

    def load(self) -> Any:
        """Return the value at the file's position."""
        start, steps, largest = self._file.tell(), 0, 0
        with contextlib.suppress(Exception):  # a damaged pickle fails when it is loaded
            for step, number, _ in pickletools.genops(self._file):
                steps += 1
                if step.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                    largest = max(largest, int(str(number)))
        if largest > steps:  # Python allocates memory up to the largest key
            raise pickle.UnpicklingError(f"damaged: memo key {largest}")
        self._file.seek(start)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        """Return this module's replacement for a name."""
        known = _KNOWN.get((re.sub(r"^numpy\.core\.", "numpy._core.", module), name))
        if known is None:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which contiguous arrays do not contain (protocol 5); nothing was executed"
            )
        # A new function each time, so that attributes that a pickle sets on it are lost.
        return lambda *args: known(*args)


class _StorageUnpickler(NumbersUnpickler):
    """Unpickler for the header of a tensor's storage; torch.LongStorage and the like become NumPy's type codes."""

    def find_class(self, module: str, name: str) -> Any:
        """Return NumPy's code of a storage type, or the replacement for another name."""
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """Return the description of a storage as it is."""
        return pid

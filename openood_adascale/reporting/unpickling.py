"""Pickles read without executing anything that they may hold.

A pickle is a program: here only the handful of names that arrays and tensors of numbers need is known, and each
stands for code of this module that rebuilds plain numbers. All else is an error.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import re
from collections.abc import Callable
from math import prod
from typing import IO, Any, ClassVar

import numpy as np

POSTPROCESSORS = "openood_adascale.plugin.postprocessor"
"""The module that pickles of this package's postprocessors name."""

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "BoolStorage": "?",
    "ByteStorage": "<u1",
    "CharStorage": "<i1",
    "ShortStorage": "<i2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
}


class _Dtype:
    """Stands for a pickled ``numpy.dtype``: numbers and booleans only."""

    __slots__ = ("value",)

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
            raise pickle.UnpicklingError(
                f"an array of dtype {code!r}; only numbers and booleans are saved there"
            )
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.value = self.value.newbyteorder("<" if state[1] == "|" else state[1])


class _Array:
    """Stands for a pickled array of protocol 4 and before, whose content comes as its state."""

    __slots__ = ("value",)

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _numbers(data, dtype, shape, "F" if fortran else "C")


def as_array(value: object) -> np.ndarray | None:
    """The array that stands at a place of what :class:`NumbersUnpickler` loaded; None where there is none."""
    if isinstance(value, _Array):
        value = getattr(value, "value", None)
    return value if isinstance(value, np.ndarray) else None


def _numbers(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    return np.frombuffer(data, dtype.value).reshape(shape, order="F" if order == "F" else "C")


def _check_memo(file: IO[bytes]) -> None:
    """See to it that a pickle numbers what it remembers as pickle does, one after the other: for a large number, Python
    itself would fill as much memory. The file's place stays."""
    start, too_large = file.tell(), None
    with contextlib.suppress(Exception):  # a damaged one: whoever loads it is told
        for count, (step, number, _) in enumerate(pickletools.genops(file)):
            if step.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(number, int) and number > count:
                too_large = number
                break
    file.seek(start)
    if too_large is not None:
        raise pickle.UnpicklingError(f"it is damaged: it keeps a value at place {too_large}")


class NumbersUnpickler(pickle.Unpickler):
    """Knows the names in OpenOOD's score files; any other name is an error, before anything is imported.

    Tensors become arrays; where an array may stand, :func:`as_array` gives it.
    """

    _KNOWN: ClassVar[dict[tuple[str, str], str]] = {
        **{(f"numpy.{core}.multiarray", "_reconstruct"): "_reconstruct" for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): "_scalar" for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): "_frombuffer" for core in ("core", "_core")},
        ("numpy", "ndarray"): "_ndarray",
        ("numpy", "dtype"): "_dtype",
        ("collections", "OrderedDict"): "_dict",
        ("_codecs", "encode"): "_encode",
        ("torch._utils", "_rebuild_tensor_v2"): "_tensor",
        ("torch.storage", "_load_from_bytes"): "_storage",
    }

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._file = file

    def load(self) -> Any:
        """What the pickle at the file's place says."""
        _check_memo(self._file)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which has no place among saved scores; nothing of it was executed"
            )
        known: Callable[..., object] = getattr(self, self._KNOWN[module, name])
        # A function of this load alone: what a pickle may set on it is gone with it.
        return lambda *args: known(*args)

    def _reconstruct(self, *_: object) -> _Array:
        return _Array()

    def _ndarray(self, *_: object) -> None:
        raise pickle.UnpicklingError("it calls numpy.ndarray, which saved scores only name")

    def _dtype(self, *args: object) -> _Dtype:
        return _Dtype(*args)

    def _scalar(self, dtype: _Dtype, data: bytes) -> float:
        number: float = _numbers(data, dtype, (1,))[0].item()
        return number

    def _frombuffer(self, data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
        return _numbers(data, dtype, shape, order)

    def _dict(self, *_: object) -> dict[object, object]:
        return {}

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it encodes text as {encoding!r}; NumPy uses 'latin1'")
        return text.encode("latin1")

    def _storage(self, data: bytes) -> np.ndarray:
        """The values of a tensor: five small pickles (the fourth has type and length), then the raw numbers.

        Read here and not by ``torch.load``, which could execute such bytes even with ``weights_only=True``
        before PyTorch 2.6.
        """
        stream = io.BytesIO(data)
        magic, version, system, (kind, code, *_), _ = (_StorageUnpickler(stream).load() for _ in range(5))
        if (magic, version, system["little_endian"], kind) != (_TORCH_MAGIC, 1001, True, "storage"):
            raise pickle.UnpicklingError("a tensor's values are not in the form that pickling gives them")
        if code not in _STORAGES.values():
            raise pickle.UnpicklingError(
                f"a tensor of type {code!r}; only numbers and booleans are saved there"
            )
        count = int.from_bytes(stream.read(8), "little")
        return np.frombuffer(data, np.dtype(code), count, stream.tell())

    def _tensor(
        self, storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
    ) -> np.ndarray:
        if stride != tuple(prod(size[axis + 1 :]) for axis in range(len(size))):
            raise pickle.UnpicklingError(f"a tensor of strides {stride}; expected a contiguous one")
        return storage[offset : offset + prod(size)].reshape(size)


class _StorageUnpickler(NumbersUnpickler):
    """The same, inside a tensor's storage; its type, say torch.LongStorage, becomes NumPy's code for it."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return pid


class PickledPostprocessor:
    """Stands for one of this package's postprocessors: what was pickled of it, as plain numbers."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class PostprocessorUnpickler(NumbersUnpickler):
    """Knows this package's postprocessors too; those of OpenOOD's own are left unread."""

    ours = False
    """Whether the pickle turned out to be of this package, in whatever version."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == POSTPROCESSORS.partition(".")[0] and name.endswith("Postprocessor"):
            self.ours = True
            if module != POSTPROCESSORS:
                raise pickle.UnpicklingError("made by another version of openood-adascale: delete it")
            return type(name, (PickledPostprocessor,), {})  # of this load alone
        return super().find_class(module, name)

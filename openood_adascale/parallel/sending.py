"""Checks of objects that are sent to other processes."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import sys
import sysconfig
from pathlib import Path
from types import FunctionType
from typing import Any

from .errors import PoolError


class _HashFile:
    """A file that keeps nothing but a hash of the bytes that are written."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, content: Any) -> int:
        self.hash.update(content)
        return memoryview(content).nbytes

    def add_buffer(self, buffer: pickle.PickleBuffer) -> None:
        self.hash.update(buffer.raw())


def inspect_object(name: str, value: Any) -> tuple[str, set[str]]:
    """Pickle an object without keeping the result.

    Args:
        name: Name of the object in errors.
        value: The object.

    Returns:
        A hash of its content, and the names of the modules of its classes and functions.

    Raises:
        PoolError: If it cannot be pickled.
    """
    import cloudpickle

    modules: set[str] = set()

    class Recorder(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            named = (
                isinstance(obj, type | FunctionType) and "<" not in obj.__qualname__
            )  # others are sent whole
            if named and isinstance(obj.__module__, str):
                modules.add(obj.__module__)
            return super().reducer_override(obj)

    sink = _HashFile()
    try:
        Recorder(sink, pickle.HIGHEST_PROTOCOL, buffer_callback=sink.add_buffer).dump(value)
    except Exception as error:
        raise PoolError(
            f"{name}: {type(value).__name__} cannot be sent to other processes ({type(error).__name__}: {error}); expected "
            "an object that pickle can copy: no locks, open files or generators in it"
        ) from error
    return sink.hash.hexdigest(), modules


def content_key(name: str, value: Any) -> str:
    """Return a key that changes with everything that a worker would receive of ``value``.

    Raises:
        PoolError: If it cannot be pickled.
    """
    return f"{name} {inspect_object(name, value)[0]}"


def own_modules(names: set[str]) -> dict[str, str]:
    """Return a hash of the source file of each loaded module outside installed libraries."""
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    found = {}
    for name in sorted(names - {"__main__"}):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and not file.startswith(libraries) and (content := _source_hash(name)):
            found[name] = content
    return found


def import_modules(expected: dict[str, str]) -> dict[str, str]:
    """Import modules, and return the reason for each that cannot be imported or has another source.

    Args:
        expected: Hashes from :func:`own_modules` by name.
    """
    reasons = {}
    for name, content in expected.items():
        try:
            importlib.import_module(name)
        except Exception as error:
            reasons[name] = f"{type(error).__name__}: {error}"
        else:
            if _source_hash(name) != content:
                reasons[name] = "its source differs from this process's"
    return reasons


def _source_hash(name: str) -> str:
    try:
        content = Path(str(sys.modules[name].__file__)).read_bytes()
    except OSError:
        return ""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def portable(error: BaseException) -> BaseException:
    """Return ``error``, or a RuntimeError with its text if pickle cannot rebuild it."""
    import cloudpickle

    try:
        copy = pickle.loads(cloudpickle.dumps(error))
    except Exception:
        copy = None
    if type(copy) is type(error) and str(copy) == str(error):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")

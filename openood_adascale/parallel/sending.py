"""Checks of objects and modules that are sent to other processes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pickle
import sys
import sysconfig
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from .pool import PoolError


def content_key(name: str, value: Any) -> str:
    """Return a key that changes with everything that a worker would receive of ``value``."""
    return f"{name} {inspect_object(name, value)[0]}"


def inspect_object(name: str, value: Any) -> tuple[str, set[str]]:
    """Return a hash of an object's pickle, and the modules of its classes and functions; errors name it by ``name``."""
    from ray import cloudpickle

    modules: set[str] = set()
    content = hashlib.blake2b(digest_size=16)

    class Recorder(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, type | FunctionType) and "<" not in obj.__qualname__:  # others are sent whole
                modules.add(str(obj.__module__))
            return super().reducer_override(obj)

    class Sink:
        write = staticmethod(content.update)

    try:
        recorder = Recorder(
            Sink(), pickle.HIGHEST_PROTOCOL, buffer_callback=lambda buffer: content.update(buffer.raw())
        )
        recorder.dump(value)
    except Exception as error:
        raise PoolError(
            f"{name}: {type(value).__name__} cannot be sent to other processes ({type(error).__name__}: {error}); expected "
            "an object that pickle can copy: no locks, open files or generators in it"
        ) from error
    return content.hexdigest(), modules


def portable(error: BaseException) -> BaseException:
    """Return ``error``, or a RuntimeError with its text if pickle cannot rebuild it or it would end a Ray worker."""
    from ray import cloudpickle

    with contextlib.suppress(Exception):
        copy = pickle.loads(cloudpickle.dumps(error))
        if isinstance(error, Exception) and type(copy) is type(error) and str(copy) == str(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def own_modules(names: set[str]) -> dict[str, tuple[str, str]]:
    """Return the source file, and its hash, of each loaded module outside installed libraries."""
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in names - {"__main__"}}
    return {
        name: (file, _file_hash(file))
        for name, file in files.items()
        if file and not file.startswith(libraries) and os.path.isfile(file)
    }


def import_modules(expected: dict[str, tuple[str, str]]) -> None:
    """Import modules, given as :func:`own_modules` returns them, by their names or else from their files."""
    for name, (file, content) in expected.items():
        try:
            found = _import(name, file).__file__
            reason = "" if found and _file_hash(found) == content else "its source differs from the driver's"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        if reason:
            raise PoolError(
                f"workers: they cannot use module {name!r} ({reason}); copy it to each node, put it on PYTHONPATH before "
                "Ray starts, or pass a runtime_env to ray.init"
            )


def import_file(name: str, file: str | os.PathLike[str]) -> ModuleType:
    """Import a file under a name."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import(name: str, file: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        if not os.path.isfile(file):
            raise
        return import_file(name, file)


def _file_hash(file: str) -> str:
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=8).hexdigest()

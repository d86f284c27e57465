"""OpenOOD's imports without packages that are hard to install and that few of its methods need."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from .changes import Changes
from .process import LOCK, say_done, switched_off


class _Package(NamedTuple):
    name: str
    imports: str  # what OpenOOD imports of it
    user: str  # what OpenOOD needs it for
    remedy: str


_PACKAGES = {
    "openood.postprocessors.openmax_postprocessor": _Package(
        "libmr",
        "libmr",
        "OpenMax",
        "it builds only with old tools: pip install numpy 'cython<3' 'setuptools<70' wheel, "
        "then pip install --no-build-isolation libmr",
    ),
    "openood.preprocessors.draem_preprocessor": _Package(
        "imgaug",
        "imgaug.augmenters",
        "DRAEM's preprocessor",
        "get it by pip install imgaug (which brings opencv-python, which needs the system's libGL)",
    ),
}


class StandIns:
    """Puts a stand-in for an absent package in place while a module of OpenOOD's imports it."""

    def __init__(self) -> None:
        self._changes = Changes()

    @contextmanager
    def during(self, module: ModuleType) -> Iterator[None]:
        """While ``module`` of OpenOOD's is executed, a stand-in for the package it imports, if that is absent.

        The stand-in is in ``sys.modules`` for that time only. The classes of ``module`` raise an ImportError when
        they are instantiated: OpenMax would meet the absent package only after its pass over the training images.
        """
        package = _PACKAGES.get(module.__name__)
        error = None if package is None or switched_off("stand-ins") else _import_error(package.imports)
        if package is None or error is None:
            yield
            return
        fail = _failure(package, error)
        imports = _in_place(package, fail)
        try:
            yield
        finally:
            imports.undo()
        say_done(
            f"{package.name} cannot be imported, OpenOOD does without it but for {package.user}", "stand-ins"
        )
        with LOCK:
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == module.__name__:
                    self._changes.set(value, "__init__", fail)

    def undo(self) -> None:
        """Take back what is in place still. The caller holds the plugin's lock."""
        self._changes.undo()


class _StandIn(ModuleType):
    """In the place of a package that is absent."""

    def __init__(self, name: str, fail: Callable[..., NoReturn]) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self._fail = fail

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            self._fail()
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _failure(package: _Package, error: Exception) -> Callable[..., NoReturn]:
    message = (
        f"OpenOOD's {package.user} needs the package {package.name}, which cannot be imported ({error}); "
        f"{package.remedy}"
    )

    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        raise ImportError(message, name=package.name)

    return fail


def _in_place(package: _Package, fail: Callable[..., NoReturn]) -> Changes:
    """The package's stand-in, put into ``sys.modules``."""
    inner = outer = _StandIn(package.imports, fail)
    if package.imports != package.name:
        outer = _StandIn(package.name, fail)
        setattr(outer, package.imports.rpartition(".")[2], inner)
    imports = Changes()
    imports.set(sys.modules, package.name, outer)
    imports.set(sys.modules, package.imports, inner)
    return imports


def _import_error(name: str) -> Exception | None:
    """Import ``name``; what that raised."""
    numpy_1 = Changes()
    try:
        if name.startswith("imgaug") and name not in sys.modules:
            numpy = importlib.import_module("numpy")
            if not hasattr(numpy, "sctypes"):  # NumPy 2 removed it; imgaug 0.4.0 reads it when imported
                numpy_1.set(numpy, "sctypes", _sctypes(numpy))
                importlib.import_module(name)
                say_done("NumPy 2 has no np.sctypes, imgaug was imported with one", "stand-ins")
        importlib.import_module(name)
    except Exception as error:
        return error
    finally:
        numpy_1.undo()
    return None


def _sctypes(numpy: Any) -> dict[str, list[type]]:
    return {
        "int": [numpy.int8, numpy.int16, numpy.int32, numpy.int64],
        "uint": [numpy.uint8, numpy.uint16, numpy.uint32, numpy.uint64],
        "float": [numpy.float16, numpy.float32, numpy.float64, numpy.longdouble],
        "complex": [numpy.complex64, numpy.complex128, numpy.clongdouble],
        "others": [bool, object, bytes, str, numpy.void],
    }

"""What lets OpenOOD run here: ``.cuda()`` without CUDA, and without packages that are hard to install.

``OPENOOD_DEVICE`` (``cpu``, ``cuda:1``, ``mps``, ...), read when OpenOOD is imported, names the device that
``.cuda()`` goes to. Without it ``.cuda()`` is left alone where there is CUDA and goes to the CPU where there
is none. Nothing here imports torch or OpenOOD; it waits until OpenOOD has done so.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

from openood_adascale_autoload import LOCK, VARIABLE, half_initialised, say, switched_off

DEVICE_VARIABLE = "OPENOOD_DEVICE"
_ABSENT = object()


class Changes:
    """Attributes and dict items that were put in place; :meth:`undo` takes back those that are still ours."""

    def __init__(self) -> None:
        self._log: list[tuple[Any, str, Any, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set ``owner[name]`` of a dict, ``owner.name`` of a module or class."""
        self._log.append((owner, name, self._own(owner).get(name, _ABSENT), value))
        self._put(owner, name, value)

    def undo(self) -> None:
        """Put back what was there before, the last change first."""
        while self._log:
            owner, name, before, ours = self._log.pop()
            if self._own(owner).get(name, _ABSENT) is ours:
                self._put(owner, name, before)

    @staticmethod
    def _own(owner: Any) -> Any:
        return owner if isinstance(owner, dict) else vars(owner)

    @staticmethod
    def _put(owner: Any, name: str, value: Any) -> None:
        if isinstance(owner, dict):
            owner.update({name: value}) if value is not _ABSENT else owner.pop(name)
        elif value is not _ABSENT:
            setattr(owner, name, value)
        else:
            delattr(owner, name)


_changes = Changes()


def undo() -> None:
    """Take back everything that this module has put in place. The caller holds the plugin's lock."""
    _changes.undo()
    _target.cache_clear()


def _say_done(line: str, part: str) -> None:
    say(f"{line} ({VARIABLE}={part} switches this off)")


# --- the device ---------------------------------------------------------------------------------------------

# Where OpenOOD (but for its trainers) names the device otherwise than by .cuda(), and by which global.
_OTHER_WAYS = {
    "openood.networks.clip": "clip",  # clip.load(..., device='cuda')
    "openood.networks.net_utils_": "torch",  # torch.load without map_location
    "openood.networks.utils": "torch",
    "openood.postprocessors.ensemble_postprocessor": "torch",
    "openood.postprocessors.gmm_postprocessor": "torch",  # torch.cuda.FloatTensor(list)
    "openood.postprocessors.mds_ensemble_postprocessor": "torch",
    "openood.postprocessors.temp_scaling_postprocessor": "torch",  # torch.ones(..., device='cuda')
}


class _Proxy(ModuleType):
    """A module as it is, but for some names."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        super().__init__(module.__name__)
        vars(self).clear()  # __spec__ and the like are the module's, too
        vars(self).update(replaced, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)


def redirect_cuda(module: ModuleType) -> None:
    """Have ``.cuda()``, and ``module`` of OpenOOD's, which was just executed, use the device that is here.

    The caller holds the plugin's lock.
    """
    torch = sys.modules.get("torch")
    if torch is None or half_initialised(torch) or switched_off("device"):
        return
    target = _target()
    name = _OTHER_WAYS.get(module.__name__, "")
    real = vars(module).get(name)
    if target is None or not isinstance(real, ModuleType) or isinstance(real, _Proxy):
        return

    def on_target(function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if str(kwargs.get("device")).startswith("cuda"):
                kwargs["device"] = target()
            return function(*args, **kwargs)

        return functools.wraps(function)(call)

    def load(file: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        return torch.load(file, target() if map_location is None else map_location, *args, **kwargs)

    def float_tensor(data: Any) -> Any:
        return torch.tensor(data, dtype=torch.float32, device=target())

    if name == "clip":
        proxy = _Proxy(real, load=on_target(real.load))
    else:
        cuda = _Proxy(torch.cuda, FloatTensor=float_tensor)
        proxy = _Proxy(real, cuda=cuda, load=load, ones=on_target(torch.ones))
    _changes.set(module, name, proxy)


@functools.cache
def _target() -> Callable[[], Any] | None:
    """Gives the device that stands in for CUDA, having sent ``.cuda()`` to it; None if CUDA is to be used."""
    torch: Any = sys.modules["torch"]
    wanted = os.environ.get(DEVICE_VARIABLE, "").strip()
    # Unlike is_available(), device_count() does not fix CUDA_VISIBLE_DEVICES for the rest of the process.
    if not wanted and torch.cuda.device_count():
        return None

    # Not before a .cuda() asks for it: importing OpenOOD is to touch no device.
    @functools.cache
    def target() -> Any:
        try:
            return torch.empty(0, device=wanted or "cpu").device
        except Exception as error:
            raise ValueError(
                f"{DEVICE_VARIABLE}={wanted!r} is no device here; allowed is what torch finds here "
                f"of cpu, cuda, cuda:<index>, mps and the like ({str(error).splitlines()[0]})"
            ) from error

    def tensor_cuda(self: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        return self.to(target(), non_blocking=non_blocking, **kwargs)

    def module_cuda(self: Any, device: Any = None) -> Any:
        return self.to(target())

    _changes.set(torch.Tensor, "cuda", tensor_cuda)
    _changes.set(torch.nn.Module, "cuda", module_cuda)
    reason = f"{DEVICE_VARIABLE}={wanted}" if wanted else "no CUDA here"
    _say_done(f"{reason}, OpenOOD's .cuda() calls go to {wanted or 'cpu'}", "device")
    return target


# --- packages that are absent -------------------------------------------------------------------------------


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


class _StandIn(ModuleType):
    """In the place of a package that is absent."""

    def __init__(self, name: str, fail: Callable) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self._fail = fail

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            self._fail()
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


@contextmanager
def stand_ins(module: ModuleType) -> Iterator[None]:
    """While ``module`` of OpenOOD's is executed, a stand-in for the package it imports, if that is absent.

    The stand-in is in ``sys.modules`` for that time only. The classes of ``module`` raise an ImportError when
    they are instantiated: OpenMax would meet the absent package only after its pass over the training images.
    """
    package = _PACKAGES.get(module.__name__)
    error = None if package is None or switched_off("stand-ins") else _import_error(package.imports)
    if package is None or error is None:
        yield
        return
    message = (
        f"OpenOOD's {package.user} needs the package {package.name}, which cannot be imported ({error}); "
        f"{package.remedy}"
    )

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ImportError(message, name=package.name)

    inner = outer = _StandIn(package.imports, fail)
    if package.imports != package.name:
        outer = _StandIn(package.name, fail)
        setattr(outer, package.imports.rpartition(".")[2], inner)
    imports = Changes()
    imports.set(sys.modules, package.name, outer)
    imports.set(sys.modules, package.imports, inner)
    try:
        yield
    finally:
        imports.undo()
    _say_done(
        f"{package.name} cannot be imported, OpenOOD does without it but for {package.user}", "stand-ins"
    )
    with LOCK:
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == module.__name__:
                _changes.set(value, "__init__", fail)


def _import_error(name: str) -> Exception | None:
    """Import ``name``; what that raised."""
    numpy_1 = Changes()
    try:
        if name.startswith("imgaug") and name not in sys.modules:
            numpy = importlib.import_module("numpy")
            if not hasattr(numpy, "sctypes"):  # NumPy 2 removed it; imgaug 0.4.0 reads it when imported
                numpy_1.set(numpy, "sctypes", _sctypes(numpy))
                importlib.import_module(name)
                _say_done("NumPy 2 has no np.sctypes, imgaug was imported with one", "stand-ins")
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

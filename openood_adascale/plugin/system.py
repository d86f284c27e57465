"""OpenOOD on this system: ``.cuda()`` without CUDA, and stub modules for missing packages.

``OPENOOD_DEVICE`` (``cpu``, ``cuda:1``, ``mps``, …), read when OpenOOD is imported, names the device of OpenOOD's
``.cuda()`` calls (default: CUDA if available, else the CPU). The stubs are for packages that OpenOOD imports, that are
hard to install, and that few of its methods need. Nothing here imports torch or OpenOOD.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from .import_hook import LOCK, Changes, half_initialised, keep_memory, say_done, switched_off

VARIABLE = "OPENOOD_DEVICE"

# Modules of OpenOOD (without trainers) that name the device in another way than .cuda(), and the global they use.
_OTHER_WAYS = {
    "openood.networks.clip": "clip",  # clip.load(..., device='cuda')
    "openood.networks.net_utils_": "torch",  # torch.load without map_location
    "openood.networks.utils": "torch",
    "openood.postprocessors.ensemble_postprocessor": "torch",
    "openood.postprocessors.gmm_postprocessor": "torch",  # torch.cuda.FloatTensor(list)
    "openood.postprocessors.mds_ensemble_postprocessor": "torch",
    "openood.postprocessors.temp_scaling_postprocessor": "torch",  # torch.ones(..., device='cuda')
}


class CudaRedirection:
    """Sends ``.cuda()`` to another device; inert until :meth:`redirect` meets a module of OpenOOD."""

    def __init__(self) -> None:
        self._changes = Changes()
        self._decided = False
        self._wanted: str | None = None
        self._temporary: Any = None
        """Device of :meth:`going_to`."""

    def redirect(self, module: ModuleType) -> None:
        """Redirect ``.cuda()`` calls, and those of ``module``, which was just executed.

        The caller holds the plugin's lock.
        """
        torch = sys.modules.get("torch")
        if torch is None or half_initialised(torch) or switched_off("device"):
            return
        if not self._decided:
            self._decided, self._wanted = True, _wanted_device(torch)
            if self._wanted is not None:
                self._replace_methods(torch, self._changes)
                kept = self._wanted in ("", "cpu") and keep_memory()
                reason = f"{VARIABLE}={self._wanted}" if self._wanted else "no CUDA here"
                target = f"{self._wanted or 'cpu'}{', freed memory is kept' if kept else ''}"
                say_done(
                    f"{reason}, OpenOOD's .cuda() calls go to {target}", "device,memory" if kept else "device"
                )
        if self._wanted is not None:
            self._replace_global(torch, module, self._changes)

    @contextmanager
    def going_to(self, device: Any) -> Iterator[None]:
        """Send ``.cuda()`` calls to the torch.device ``device`` inside the ``with`` block."""
        torch: Any = sys.modules["torch"]
        if switched_off("device"):
            yield
            return
        before, self._temporary = self._temporary, device
        changes = Changes()
        if self._wanted is None and before is None and device.type != "cuda":
            self._replace_methods(torch, changes)
            for name in _OTHER_WAYS:
                if name in sys.modules:
                    self._replace_global(torch, sys.modules[name], changes)
        index = device.index if device.type == "cuda" else None
        try:
            with torch.cuda.device(index) if index is not None else nullcontext():
                yield
        finally:
            self._temporary = before
            changes.undo()

    def undo(self) -> None:
        """Restore the methods and modules. The caller holds the plugin's lock."""
        self._changes.undo()
        self._decided, self._wanted = False, None
        self.__dict__.pop("_named", None)

    @property
    def _device(self) -> Any:
        return self._named if self._temporary is None else self._temporary

    # Not before a .cuda() asks for it: importing OpenOOD touches no device.
    @functools.cached_property
    def _named(self) -> Any:
        torch: Any = sys.modules["torch"]
        try:
            return torch.empty(0, device=self._wanted or "cpu").device
        except Exception as error:
            raise ValueError(
                f"{VARIABLE}={self._wanted!r} is not available; expected a device that torch finds here: cpu, cuda, "
                f"cuda:<index>, mps and the like ({str(error).splitlines()[0]})"
            ) from error

    def _replace_methods(self, torch: Any, changes: Changes) -> None:
        def tensor_cuda(tensor: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
            return tensor.to(self._device, non_blocking=non_blocking, **kwargs)

        def module_cuda(module: Any, device: Any = None) -> Any:
            return module.to(self._device)

        changes.set(torch.Tensor, "cuda", tensor_cuda)
        changes.set(torch.nn.Module, "cuda", module_cuda)

    def _replace_global(self, torch: Any, module: ModuleType, changes: Changes) -> None:
        """Replace the functions that ``module`` gives a device."""
        name = _OTHER_WAYS.get(module.__name__, "")
        real: Any = vars(module).get(name)
        if not isinstance(real, ModuleType) or isinstance(real, _Proxy):
            return

        def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if str(kwargs.get("device")).startswith("cuda"):
                    kwargs["device"] = self._device
                return function(*args, **kwargs)

            return functools.wraps(function)(call)

        def load(file: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
            return torch.load(file, self._device if map_location is None else map_location, *args, **kwargs)

        def float_tensor(data: Any) -> Any:
            return torch.tensor(data, dtype=torch.float32, device=self._device)

        if name == "clip":
            proxy = _Proxy(real, load=on_device(real.load))
        else:
            cuda = _Proxy(torch.cuda, FloatTensor=float_tensor)
            proxy = _Proxy(real, cuda=cuda, load=load, ones=on_device(torch.ones))
        changes.set(module, name, proxy)


def _wanted_device(torch: Any) -> str | None:
    """Return the device that replaces CUDA ("" is the CPU for want of CUDA; None keeps CUDA)."""
    wanted = os.environ.get(VARIABLE, "").strip()
    # Unlike is_available(), device_count() does not fix CUDA_VISIBLE_DEVICES for the rest of the process.
    return None if not wanted and torch.cuda.device_count() else wanted


class _Proxy(ModuleType):
    """A module with some names replaced."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        super().__init__(module.__name__)
        vars(self).clear()  # __spec__ and the like are the module's, too
        vars(self).update(replaced, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)


CUDA = CudaRedirection()
"""The redirection of this process."""


# Stubs.


class _Package(NamedTuple):
    name: str
    imports: str  # name of the module that OpenOOD imports
    user: str  # part of OpenOOD that needs it
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
        "get it by pip install imgaug 'numpy<2' (which brings opencv-python, which needs the system's libGL)",
    ),
}


class Stubs:
    """Provides a stub for a missing package while a module of OpenOOD imports it."""

    def __init__(self) -> None:
        self._changes = Changes()

    @contextmanager
    def during(self, module: ModuleType) -> Iterator[None]:
        """Provide a stub, if needed, while ``module`` of OpenOOD is executed.

        The stub is in ``sys.modules`` for that time only. The classes of ``module`` raise an ImportError when they are
        instantiated: OpenMax would need the package only after its pass over the training images.
        """
        package = _PACKAGES.get(module.__name__)
        error = None if package is None or switched_off("stubs") else _import_error(package.imports)
        if package is None or error is None:
            yield
            return
        fail = _failure(package, error)
        modules = Changes()
        inner = outer = _Stub(package.imports, fail)
        if package.imports != package.name:
            outer = _Stub(package.name, fail)
            setattr(outer, package.imports.rpartition(".")[2], inner)
        modules.set(sys.modules, package.name, outer)
        modules.set(sys.modules, package.imports, inner)
        try:
            yield
        finally:
            modules.undo()
        say_done(f"{package.name} cannot be imported; only OpenOOD's {package.user} needs it", "stubs")
        with LOCK:
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == module.__name__:
                    self._changes.set(value, "__init__", fail)

    def undo(self) -> None:
        """Restore the classes. The caller holds the plugin's lock."""
        self._changes.undo()


class _Stub(ModuleType):
    """Stub of a missing package."""

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


def _import_error(name: str) -> Exception | None:
    """Import ``name`` and return its error, if any."""
    try:
        importlib.import_module(name)
    except Exception as error:
        return error
    return None

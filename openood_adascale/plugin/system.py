"""OpenOOD on this system: ``.cuda()`` without CUDA, and stub modules for missing packages.

``OPENOOD_DEVICE`` (``cpu``, ``cuda:1``, ``mps``, …), read when OpenOOD is imported, names the device of OpenOOD's
``.cuda()`` calls (default: CUDA if available, else the CPU). The stubs are for packages that OpenOOD imports, that are
hard to install, and that few of its methods need. Nothing here imports torch or OpenOOD.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from .import_hook import LOCK, Changes, half_initialised, keep_memory, say, switched_off
from .import_hook import VARIABLE as DISABLE

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
        """Device that replaces CUDA ("" is the CPU for want of CUDA; None keeps CUDA)."""
        self._target: Any = None
        """The torch.device, found at the first call."""

    def redirect(self, module: ModuleType) -> None:
        """Redirect ``.cuda()`` calls, and those of ``module``, which was just executed.

        The caller holds the plugin's lock.
        """
        torch = sys.modules.get("torch")
        if torch is None or half_initialised(torch) or switched_off("device"):
            return
        if not self._decided:
            self._decided = True
            wanted = os.environ.get(VARIABLE, "").strip()
            # Unlike is_available(), device_count() does not fix CUDA_VISIBLE_DEVICES for the rest of the process.
            if wanted or not torch.cuda.device_count():
                self._wanted = wanted
                self._replace_methods(torch, self._changes)
                kept = wanted in ("", "cpu") and keep_memory()
                reason = f"{VARIABLE}={wanted}" if wanted else "no CUDA here"
                target = f"{wanted or 'cpu'}{', freed memory is kept' if kept else ''}"
                parts = "device,memory" if kept else "device"
                _say_done(f"{reason}, OpenOOD's .cuda() calls go to {target}", parts)
        if self._wanted is not None:
            self._replace_global(torch, module, self._changes)

    @contextmanager
    def going_to(self, device: Any) -> Iterator[None]:
        """Send ``.cuda()`` calls to the torch.device ``device`` inside the ``with`` block."""
        torch: Any = sys.modules["torch"]
        if switched_off("device"):
            yield
            return
        before, self._target = self._target, device
        changes = Changes()
        if self._wanted is None and device.type != "cuda":
            self._replace_methods(torch, changes)
            for name in _OTHER_WAYS.keys() & sys.modules.keys():
                self._replace_global(torch, sys.modules[name], changes)
        index = device.index if device.type == "cuda" else None
        try:
            with torch.cuda.device(index) if index is not None else nullcontext():
                yield
        finally:
            self._target = before
            changes.undo()

    def undo(self) -> None:
        """Restore the methods and modules. The caller holds the plugin's lock."""
        self._changes.undo()
        self._decided, self._wanted, self._target = False, None, None

    @property
    def _device(self) -> Any:
        if self._target is None:  # only now: importing OpenOOD touches no device
            try:
                self._target = sys.modules["torch"].empty(0, device=self._wanted or "cpu").device
            except Exception as error:
                raise ValueError(
                    f"{VARIABLE}={self._wanted!r} is not available; expected a device that torch finds here: cpu, cuda, "
                    f"cuda:<index>, mps and the like ({str(error).splitlines()[0]})"
                ) from error
        return self._target

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

            return call

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


class _Proxy(ModuleType):
    """A module with some names replaced."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        super().__init__(module.__name__)
        vars(self).clear()  # __spec__ and the like are the module's, too
        vars(self).update(replaced, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)


def _say_done(line: str, parts: str) -> None:
    say(f"{line} ({DISABLE}={parts} switches this off)")


CUDA = CudaRedirection()
"""The redirection of this process."""


# Stubs.


_PACKAGES = {
    "openood.postprocessors.openmax_postprocessor": (
        "libmr",
        "OpenMax",
        "it builds only with old tools: pip install numpy 'cython<3' 'setuptools<70' wheel, "
        "then pip install --no-build-isolation libmr",
    ),
    "openood.preprocessors.draem_preprocessor": (
        "imgaug.augmenters",
        "DRAEM preprocessor",
        "get it by pip install imgaug 'numpy<2' (which brings opencv-python, which needs the system's libGL)",
    ),
}
"""Modules of OpenOOD, with the module that they import, the part of OpenOOD that needs it, and the remedy."""


@contextmanager
def stub_for_missing_package(module: ModuleType, changes: Changes) -> Iterator[None]:
    """Provide a stub, if needed, while ``module`` of OpenOOD is executed.

    The stub is in ``sys.modules`` for that time only. The classes of ``module`` raise an ImportError when they are
    instantiated: OpenMax would need the package only after its pass over the training images.

    Args:
        module: The module.
        changes: Keeps the changes to its classes.
    """
    if module.__name__ not in _PACKAGES or switched_off("stubs"):
        yield
        return
    imports, user, remedy = _PACKAGES[module.__name__]
    package, _, submodule = imports.partition(".")
    try:
        importlib.import_module(imports)
    except Exception as problem:
        error = problem
    else:
        yield
        return

    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        told = f"OpenOOD's {user} needs the package {package}, which cannot be imported ({error}); {remedy}"
        raise ImportError(told, name=package)

    stub, modules = _Stub(package, fail), Changes()
    if submodule:
        vars(stub)[submodule] = stub
    for name in {package, imports}:
        modules.set(sys.modules, name, stub)
    try:
        yield
    finally:
        modules.undo()
    _say_done(f"{package} cannot be imported; only OpenOOD's {user} needs it", "stubs")
    with LOCK:
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == module.__name__:
                changes.set(value, "__init__", fail)


class _Stub(ModuleType):
    """Stub of a missing package, and of its submodule."""

    def __init__(self, name: str, fail: Callable[..., NoReturn]) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self._fail = fail

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            self._fail()
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

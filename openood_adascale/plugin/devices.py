"""``.cuda()`` without CUDA.

``OPENOOD_DEVICE`` (``cpu``, ``cuda:1``, ``mps``, ...), read when OpenOOD is imported, names the device that
``.cuda()`` goes to. Without it ``.cuda()`` is left alone where there is CUDA and goes to the CPU where there
is none. Nothing here imports torch or OpenOOD; it waits until OpenOOD has done so.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from .changes import Changes
from .process import half_initialised, keep_memory, say_done, switched_off

VARIABLE = "OPENOOD_DEVICE"

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


class CudaRedirection:
    """Sends ``.cuda()`` to the device that is here; inert until :meth:`redirect` meets a module of OpenOOD's."""

    def __init__(self) -> None:
        self._changes = Changes()
        self._decided = False
        self._target: _Target | None = None
        self._meanwhile: _Target | None = None
        """That of :meth:`going_to`."""

    def redirect(self, module: ModuleType) -> None:
        """Have ``.cuda()``, and ``module`` of OpenOOD's, which was just executed, use the device that is here.

        The caller holds the plugin's lock.
        """
        torch = sys.modules.get("torch")
        if torch is None or half_initialised(torch) or switched_off("device"):
            return
        if not self._decided:
            self._decided, self._target = True, _target_for(torch)
            if self._target is not None:
                self._replace_methods(torch, self._target)
        name = _OTHER_WAYS.get(module.__name__, "")
        real = vars(module).get(name)
        if self._target is not None and isinstance(real, ModuleType) and not isinstance(real, _Proxy):
            self._changes.set(module, name, _redirected(name, real, torch, self._target))

    @contextmanager
    def going_to(self, device: Any) -> Iterator[None]:
        """``.cuda()``, and OpenOOD's other ways, meanwhile mean the torch.device ``device``."""
        torch: Any = sys.modules["torch"]
        if switched_off("device") or self._means(torch, device):
            yield
            return
        changes, target = Changes(), _Target(torch, str(device))
        _replace_methods(changes, torch, target)
        for module_name, name in _OTHER_WAYS.items():
            module = sys.modules.get(module_name)
            real = None if module is None else vars(module).get(name)
            if isinstance(real, _Proxy):
                real = vars(real)["_module"]
            if isinstance(real, ModuleType):
                changes.set(module, name, _redirected(name, real, torch, target))
        before, self._meanwhile = self._meanwhile, target
        try:
            yield
        finally:
            self._meanwhile = before
            changes.undo()

    def _means(self, torch: Any, device: Any) -> bool:
        target = self._meanwhile or self._target
        if target is not None:
            return bool(target.device == device)
        there = device.type == "cuda" and torch.cuda.device_count()
        return bool(there and device.index in (None, torch.cuda.current_device()))

    def undo(self) -> None:
        """Take back everything that was put in place. The caller holds the plugin's lock."""
        self._changes.undo()
        self._decided, self._target = False, None

    def _replace_methods(self, torch: Any, target: _Target) -> None:
        _replace_methods(self._changes, torch, target)
        kept = target.wanted in ("", "cpu") and keep_memory()
        reason = f"{VARIABLE}={target.wanted}" if target.wanted else "no CUDA here"
        where = f"{target.wanted or 'cpu'}{', freed memory is kept' if kept else ''}"
        say_done(f"{reason}, OpenOOD's .cuda() calls go to {where}", "device,memory" if kept else "device")


def _replace_methods(changes: Changes, torch: Any, target: _Target) -> None:
    def tensor_cuda(self: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        return self.to(target.device, non_blocking=non_blocking, **kwargs)

    def module_cuda(self: Any, device: Any = None) -> Any:
        return self.to(target.device)

    changes.set(torch.Tensor, "cuda", tensor_cuda)
    changes.set(torch.nn.Module, "cuda", module_cuda)


class _Target:
    """What stands in for CUDA."""

    def __init__(self, torch: Any, wanted: str) -> None:
        self._torch = torch
        self.wanted = wanted

    # Not before a .cuda() asks for it: importing OpenOOD is to touch no device.
    @functools.cached_property
    def device(self) -> Any:
        """The torch.device.

        Raises:
            ValueError: it is not there.
        """
        try:
            return self._torch.empty(0, device=self.wanted or "cpu").device
        except Exception as error:
            raise ValueError(
                f"{VARIABLE}={self.wanted!r} is no device here; allowed is what torch finds here "
                f"of cpu, cuda, cuda:<index>, mps and the like ({str(error).splitlines()[0]})"
            ) from error


def _target_for(torch: Any) -> _Target | None:
    """None if CUDA is to be used."""
    wanted = os.environ.get(VARIABLE, "").strip()
    # Unlike is_available(), device_count() does not fix CUDA_VISIBLE_DEVICES for the rest of the process.
    if not wanted and torch.cuda.device_count():
        return None
    return _Target(torch, wanted)


class _Proxy(ModuleType):
    """A module as it is, but for some names."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        super().__init__(module.__name__)
        vars(self).clear()  # __spec__ and the like are the module's, too
        vars(self).update(replaced, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)


def _redirected(name: str, real: Any, torch: Any, target: _Target) -> _Proxy:
    """The module that OpenOOD imported as ``name``, with the functions that it gives a device replaced."""

    def on_target(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if str(kwargs.get("device")).startswith("cuda"):
                kwargs["device"] = target.device
            return function(*args, **kwargs)

        return functools.wraps(function)(call)

    def load(file: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        return torch.load(file, target.device if map_location is None else map_location, *args, **kwargs)

    def float_tensor(data: Any) -> Any:
        return torch.tensor(data, dtype=torch.float32, device=target.device)

    if name == "clip":
        return _Proxy(real, load=on_target(real.load))
    cuda = _Proxy(torch.cuda, FloatTensor=float_tensor)
    return _Proxy(real, cuda=cuda, load=load, ones=on_target(torch.ones))

"""A worker on Ray, and the settings that it takes over from the driver."""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..memory import keep_memory
from .pool import PoolError, enter_worker
from .sending import import_modules, portable

KEPT = 4
"""Shared objects that driver and workers keep."""
# Of torch.backends; an outer precision stands before the inner ones, which it would overwrite.
_BACKEND_FLAGS = (
    *(f"cudnn.{name}" for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
    *(f"mkldnn.{name}" for name in ("enabled", "deterministic")),
    *(f"cuda.matmul.allow_{kind}_reduced_precision_reduction" for kind in ("fp16", "bf16")),
    *("fp32_precision", "cuda.matmul.fp32_precision"),
    *(f"cudnn.{part}fp32_precision" for part in ("", "conv.", "rnn.")),
    *(f"mkldnn.{part}fp32_precision" for part in ("", "matmul.", "conv.", "rnn.")),
)


@dataclass(frozen=True)
class WorkerSettings:
    """Settings that workers take over from the driver, or check against their own."""

    path: list[str]
    threads: int
    flags: dict[str, Any]
    versions: dict[str, str]
    modules: dict[str, tuple[str, str]]
    """Source files of the user's modules, and their hashes."""
    workers_of_nodes: dict[str, int]
    """Workers by Ray's node id."""


class Worker:
    """A Ray actor that runs pieces of work."""

    def __init__(self) -> None:
        self._objects: dict[str, Any] = {}
        self._settings: WorkerSettings | None = None

    def node(self) -> str:
        """Return Ray's id of the node."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def prepare(self, settings: WorkerSettings) -> None:
        """Take over the driver's settings; raise a PoolError if a version or a module differs."""
        if settings == self._settings:
            return
        sys.path.extend(place for place in settings.path if place not in sys.path)
        if settings.versions != versions():
            raise PoolError(
                f"workers: node {self.node()[:8]} has {versions()}; expected {settings.versions} as in the driver: install "
                "the same versions there, or pass a runtime_env to ray.init"
            )
        import_modules(settings.modules)
        sharing = settings.workers_of_nodes.get(self.node(), 1)
        torch.set_num_threads(max(1, min(settings.threads, (os.cpu_count() or 1) // sharing)))
        set_arithmetic_flags(settings.flags)
        if torch.cuda.is_available():
            torch.cuda.set_device(0)  # the only one that Ray shows to this worker
        keep_memory()
        enter_worker(sharing)
        self._settings = settings

    def run(
        self, settings: WorkerSettings, function: bytes, shared: dict[str, tuple[str, list[Any]]], piece: Any
    ) -> Any:
        """Return the result of a piece."""
        import ray

        try:
            self.prepare(settings)
            objects = {
                name: kept(self._objects, key, functools.partial(ray.get, reference))
                for name, (key, [reference]) in shared.items()
            }
            return ray.cloudpickle.loads(function)(objects, piece)
        except (Exception, SystemExit) as error:
            if (sent := portable(error)) is error:
                raise
            raise sent from error


def kept(kept: dict[str, Any], key: str, make: Callable[[], Any]) -> Any:
    """Return the entry of a dictionary that holds the latest :data:`KEPT` entries."""
    kept[key] = kept.pop(key) if key in kept else make()
    if len(kept) > KEPT:
        del kept[next(iter(kept))]
    return kept[key]


def versions() -> dict[str, str]:
    """Return the versions that driver and workers must share."""
    from .. import __version__

    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, "torch": torch.__version__, "openood_adascale": __version__}


def arithmetic_flags() -> dict[str, Any]:
    """Return torch's global settings that numbers depend on, as far as this torch has them."""
    flags = {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "dtype": torch.get_default_dtype(),
        "denormal": torch.tensor([1e-40], dtype=torch.float32).mul(1.0).item() == 0.0,
    }
    with contextlib.suppress(RuntimeError):  # it was set through fp32_precision
        flags["matmul"] = torch.get_float32_matmul_precision()
    for name in _BACKEND_FLAGS:
        with contextlib.suppress(AttributeError, RuntimeError):  # as well, or torch is older
            flags[name] = operator.attrgetter(name)(torch.backends)
    return flags


def set_arithmetic_flags(flags: dict[str, Any]) -> None:
    """Set torch's global settings to those of :func:`arithmetic_flags`."""
    torch.use_deterministic_algorithms(flags["deterministic"], warn_only=flags["warn_only"])
    torch.set_default_dtype(flags["dtype"])
    torch.set_flush_denormal(flags["denormal"])
    for name in ("matmul", *_BACKEND_FLAGS):
        if name not in flags or flags[name] == arithmetic_flags().get(name):
            continue
        if name == "matmul":
            torch.set_float32_matmul_precision(flags[name])
        else:
            owner, _, attribute = f"backends.{name}".rpartition(".")
            setattr(operator.attrgetter(owner)(torch), attribute, flags[name])

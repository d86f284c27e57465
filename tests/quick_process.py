"""A Python process for a test without the seconds that it takes to import torch: forked from a process that has only other
people's libraries in memory, by multiprocessing's forkserver. This package and OpenOOD are imported in it as in any other.

Not for tests of what an import does, of the interpreter's options, of how it takes signals: these take :mod:`subprocess`.
"""

from __future__ import annotations

import atexit
import importlib
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
from openood_bench import find_openood

if TYPE_CHECKING:  # the second is not where there is no forkserver
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext

LIBRARIES = ["torch", "torchvision", "pandas", "sklearn.metrics", "matplotlib.pyplot", "tqdm.auto", "yaml"]
"""What this package's commands import; who lacks one does without."""
OPENOODS_LIBRARIES = [
    "torch._dynamo", "sklearn.covariance", "sklearn.linear_model", "sklearn.mixture", "sklearn.neighbors", "scipy.stats",
    "json5", "cv2", "faiss", "foolbox", "statsmodels.api", "timm",
]  # fmt: skip
"""What OpenOOD's scripts import beside."""
AT_START = ("PYTHON", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "MALLOC_", "LD_", "MPL", "GLIBC_")
"""How variables begin that count when a process starts, ..."""
LATER = {"PYTHONPATH", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}
"""... but for these, the last two of which scikit-learn sets when it is imported."""


def run(
    arguments: Sequence[object],
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    check: bool = False,
    before: Callable[[], object] | None = None,
    ordinary: bool = False,
) -> subprocess.CompletedProcess[str]:
    """``python <arguments>``, a script or ``-m`` or ``-c``, as by :func:`subprocess.run`, with what it printed as text.

    ``before`` is called in it first and has to be importable. A process that has nothing in memory when it starts
    if ``ordinary``, where something has to be as ``env`` says then, or where there is no forkserver.
    """
    process = start(arguments, cwd, env, before, ordinary)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as late:
        process.kill()
        late.stdout, late.stderr = process.communicate(timeout=10)
        raise
    except BaseException:
        process.kill()
        raise
    done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def start(
    arguments: Sequence[object],
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
    ordinary: bool = False,
) -> subprocess.Popen[str] | Started:
    """:func:`run` without waiting for its end."""
    told = [str(argument) for argument in arguments]
    found = None if ordinary else server()
    env = dict(os.environ if env is None else env)
    if found is not None and _at_start(env) == found.environment:
        return Started(found, told, os.path.abspath(cwd or "."), env, before)
    return subprocess.Popen(
        [sys.executable, *told], cwd=cwd, env=env, preexec_fn=before, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


class Started:
    """A forked process, with what the tests need of :class:`subprocess.Popen`."""

    def __init__(
        self,
        server: Server,
        arguments: list[str],
        cwd: str,
        env: dict[str, str],
        before: Callable[[], object] | None,
    ) -> None:
        self.args = [sys.executable, *arguments]
        reading, writing = zip(*(server.context.Pipe(duplex=False) for _ in range(2)), strict=True)
        self._process = server.context.Process(
            target=_become, args=(arguments, cwd, env, writing, server.path, before)
        )
        self._process.start()
        # As one of subprocess's: not waited for when this process ends, and asked for its end by nobody else.
        multiprocessing.process._children.discard(self._process)
        for pipe in writing:
            pipe.close()
        self._printed = ["", ""]
        self._readers = [
            threading.Thread(target=self._read, args=numbered, daemon=True) for numbered in enumerate(reading)
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        latest = None if timeout is None else time.monotonic() + timeout
        for part in (self._process, *self._readers):
            part.join(None if latest is None else max(0, latest - time.monotonic()))
            if part.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._printed[0], self._printed[1]

    def _read(self, place: int, pipe: Connection) -> None:
        with pipe, open(pipe.fileno(), closefd=False) as file:
            self._printed[place] = file.read()


@dataclass(frozen=True)
class Server:
    context: ForkServerContext
    path: list[str]
    """sys.path of a fresh interpreter, without the script's folder."""
    environment: dict[str, str]


_FIRST = threading.Lock()
"""Threads may ask for a first process at the same time."""


def server() -> Server | None:
    """Started once, with what the environment says then, which for this moment is not for other threads to read; it ends
    with this process. None where there can be none."""
    with _FIRST:
        return _started_server()


@cache
def _started_server() -> Server | None:
    if sys.platform != "linux":  # macOS has a forkserver, too, but libraries that bear no fork
        return None
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Without this package's entry point, which is looked for when torch is imported: see _Torch.
    found["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    code = "import json, sys; print(json.dumps(sys.path[1:]))"
    path = json.loads(subprocess.check_output([sys.executable, "-c", code], env=found))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES + (OPENOODS_LIBRARIES if find_openood() else []))
    with mock.patch.dict(os.environ, found, clear=True):
        first = context.Process(target=int)
        first.start()  # an EOFError: importing one of them failed, as the lines before say
        first.join()
    return Server(context, path, _at_start(found))


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in environment.items() if name.startswith(AT_START) and name not in LATER
    }


def _become(
    arguments: list[str],
    cwd: str,
    env: dict[str, str],
    printed: Sequence[Connection],
    path: list[str],
    before: Callable[[], object] | None,
) -> None:
    """In the forked process: be what ``python <arguments>`` is after its start."""
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined] # nobody's child, as a started one
    for number, (name, pipe) in enumerate(zip(("stdout", "stderr"), printed, strict=True), 1):
        os.dup2(pipe.fileno(), number)
        pipe.close()
        as_python = {"errors": "backslashreplace", "buffering": 1} if name == "stderr" else {}
        stream = open(number, "w", closefd=False, **as_python)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False  # of what the server has loaded, which need not be taken down in good order
    if before is not None:
        before()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    loaded = [name for name in sys.modules if name.partition(".")[0] in ("openood", "openood_adascale")]
    assert not loaded, loaded
    added = [os.path.abspath(entry) for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = ["", *added, *path]
    importlib.invalidate_caches()
    sys.meta_path.insert(0, _Torch())
    np.random.seed()  # noqa: NPY002 # from the system, as when it is imported
    status: object = 0
    try:
        _execute(arguments)
    except SystemExit as left:
        status = left.code
        if not isinstance(status, int | None):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.exit(status)


class _Torch(MetaPathFinder, Loader):
    """What is loaded already, of which the program has not heard before it imports it: only then does torch look for this
    package's entry point."""

    def __init__(self) -> None:
        self._torch = sys.modules.pop("torch")
        self._spec = self._torch.__spec__

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name == "torch" else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return self._torch

    def exec_module(self, module: types.ModuleType) -> None:
        sys.meta_path.remove(self)
        module.__spec__ = self._spec
        module.__loader__ = self._spec and self._spec.loader
        if getattr(module, "_is_device_backend_autoload_enabled", bool)():  # torch 2.5 or later
            module._import_device_backends()


def _execute(arguments: list[str]) -> None:
    first, *rest = arguments
    if first == "-m":
        module, *rest = rest
        sys.path[0] = os.getcwd()
        sys.argv[:] = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if first == "-c":
        code, *rest = rest
        sys.argv[:] = ["-c", *rest]
        name = "<string>"
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(first))
        sys.argv[:] = [first, *rest]
        code = Path(first).read_bytes()
        name = main.__file__ = first
    exec(compile(code, name, "exec", dont_inherit=True), vars(main))

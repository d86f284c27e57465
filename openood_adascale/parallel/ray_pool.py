"""The pool of workers on Ray.

The user's process is the driver and keeps the script, its files and its progress bars. Each worker is a Ray actor that keeps
the shared objects by key and runs numbered pieces. This pool runs lost pieces again itself, instead of Ray, so that an error
can name the images of a piece that ends its workers.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import re
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from .pool import Pool, PoolError, SharedObject, WorkerLostError
from .sending import inspect_object, own_modules
from .worker import Worker, WorkerSettings, arithmetic_flags, kept, versions

P = TypeVar("P")
R = TypeVar("R")
TIMEOUT_VARIABLE = "OPENOOD_ADASCALE_TIMEOUT"
TIMEOUT = 600.0
"""Seconds that the driver waits for a piece before its worker is replaced, and for workers to start."""
TRIES = 3
_AHEAD = 2  # pieces under way on a worker
_RAY_SETTINGS = {
    "RAY_worker_niceness": "0",  # with Ray's 15, workers starve beside busy processes
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


@dataclass(eq=False)
class _Call:
    """A call of :meth:`RayPool.map`."""

    arguments: tuple[WorkerSettings, bytes, dict[str, tuple[str, list[Any]]]]
    describe: Callable[[Any], str]
    warned: bool = False


@dataclass(eq=False)
class _Task:
    """A piece of work."""

    call: _Call
    piece: Any
    future: Future[Any] = field(default_factory=Future)
    reference: Any = None
    losses: int = 0


@dataclass(eq=False)
class _Slot:
    """A worker and its tasks, of which it runs the first."""

    actor: Any
    starting: Any = None
    """Reference of :meth:`Worker.prepare` while a replacement starts."""
    tasks: deque[_Task] = field(default_factory=deque)
    waited: float = 0.0
    """Seconds that the driver has waited for the first task, or for the start."""


class RayPool(Pool):
    """Workers on Ray; see :func:`~openood_adascale.parallel.ray_workers`.

    With the driver's number of threads per worker, results equal those of one process bit for bit.
    """

    def __init__(self, workers: int | None = None, address: str = "local", dashboard: bool = False) -> None:
        self._process = os.getpid()
        self._slots: list[_Slot] = []
        self._todo: deque[_Task] = deque()
        self._references: dict[str, tuple[Any, set[str]]] = {}
        self._shown: Any = None  # Ray's function that prints its messages
        self._ray = _import_ray()
        self.timeout = self._start_timeout = _timeout()
        if workers is not None and (not isinstance(workers, int) or workers < 1):
            raise PoolError(f"workers: {workers!r} is not allowed; expected a whole number from 1 on")
        self._started = not self._ray.is_initialized()
        try:
            if self._started:
                self._start(workers, address, dashboard)
            gpus = int(self._ray.cluster_resources().get("GPU", 0))
            if workers is None and not gpus:
                raise PoolError(
                    "workers: None is not allowed without GPUs; expected their number (--ray-workers N)"
                )
            self.workers = workers or gpus
            # More workers than GPUs share them evenly.
            options = {"num_gpus": 1 / math.ceil(self.workers / gpus)} if gpus else {}
            self._check_size()
            self._make = self._ray.remote(max_restarts=0, max_task_retries=0, num_cpus=1, **options)(Worker)
            self._slots = [_Slot(self._make.remote()) for _ in range(self.workers)]
            nodes = self._first_answers([slot.actor.node.remote() for slot in self._slots])
            self._workers_of_nodes = {node: nodes.count(node) for node in nodes}
            settings = self._settings()
            self._first_answers([slot.actor.prepare.remote(settings) for slot in self._slots])
        except BaseException:
            self.close()
            raise

    def usable(self) -> bool:
        """Return True in the process that made the pool."""
        return os.getpid() == self._process

    def map(
        self,
        function: Callable[[dict[str, Any], P], R],
        pieces: Iterable[P],
        shared: Mapping[str, SharedObject],
        describe: Callable[[P], str] = str,
    ) -> Iterator[R]:
        """Yield ``function(objects, piece)`` for each piece, in order; see :meth:`~.pool.Pool.map`."""
        if not self._slots:
            raise PoolError(
                "workers: the pool is closed; expected a call inside the with block of ray_workers"
            )
        modules = inspect_object("function", function)[1]
        sent = {}
        for name, one in shared.items():
            reference, needed = kept(self._references, one.key, functools.partial(self._put, name, one))
            modules |= needed
            sent[name] = (one.key, [reference])
        call = _Call((self._settings(modules), self._ray.cloudpickle.dumps(function), sent), describe)
        tasks = (_Task(call, piece) for piece in pieces)
        window: deque[_Task] = deque()
        try:
            while True:
                while len(window) < 2 * _AHEAD * self.workers and (task := next(tasks, None)) is not None:
                    window.append(task)
                    self._todo.append(task)
                if not window:
                    return
                while not window[0].future.done():
                    self._submit()
                    self._collect()
                yield window.popleft().future.result()
        finally:
            for task in window:
                task.future.cancel()
            for slot in self._slots:
                for task in list(slot.tasks)[1:]:
                    if task.future.cancelled():
                        self._ray.cancel(task.reference)

    def close(self) -> None:
        """Stop the workers, and Ray if this pool has started it."""
        for slot in self._slots:
            self._kill(slot)
        self._slots = []
        if self._started:
            self._started = False
            self._ray.shutdown()
            if self._shown is not None:
                self._ray._private.worker.print_to_stdstream = self._shown

    def _start(self, workers: int | None, address: str, dashboard: bool) -> None:
        """Start or join Ray."""
        options: dict[str, Any] = {"address": address}
        if address == "local":
            options["num_cpus"] = max(workers or 1, os.cpu_count() or 1)
            options["include_dashboard"] = dashboard
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._ray.init(**options, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            text = " ".join(str(error).split())
            hint = "; the dashboard needs ray[default]" if dashboard else ""
            raise PoolError(
                f"ray: {address!r} cannot be used ({type(error).__name__}: {text}); expected local, auto with a cluster "
                f"that is running, or HOST:PORT of one{hint}"
            ) from error
        # Lines about lost workers reach standard output in spite of log_to_driver=False.
        module = getattr(getattr(self._ray, "_private", None), "worker", None)
        self._shown = getattr(module, "print_to_stdstream", None)
        if module is not None and self._shown is not None:
            module.print_to_stdstream = lambda *args, **kwargs: None

    def _put(self, name: str, one: SharedObject) -> tuple[Any, set[str]]:
        """Return a reference to a shared object, and the names of the modules that it needs."""
        modules = inspect_object(name, one.value)[1]
        return self._ray.put(one.value), modules

    def _settings(self, modules: Iterable[str] = ()) -> WorkerSettings:
        return WorkerSettings(
            path=list(sys.path),
            threads=torch.get_num_threads(),
            flags=arithmetic_flags(),
            versions=versions(),
            modules=own_modules(set(modules)),
            workers_of_nodes=self._workers_of_nodes,
        )

    def _first_answers(self, references: list[Any]) -> list[Any]:
        """Return the workers' answers, or raise a PoolError if a worker does not start."""
        errors = self._ray.exceptions
        try:
            answers: list[Any] = self._ray.get(references, timeout=self._start_timeout)
        except errors.GetTimeoutError as error:
            raise PoolError(
                f"workers: {self.workers} did not start within {self._start_timeout:g} s; {self._resources()}"
            ) from error
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = " … ".join(dict.fromkeys([lines[0], lines[-1]]))
            raise PoolError(
                f"workers: they cannot start ({reason}); install openood_adascale and its requirements on each node, or "
                "pass a runtime_env to ray.init"
            ) from error
        return answers

    def _check_size(self) -> None:
        """Raise a PoolError if there are more workers than CPUs, and the cluster does not grow."""
        cpus = self._ray.cluster_resources().get("CPU", 0)
        if self.workers > cpus and not _has_autoscaler():
            raise PoolError(
                f"workers: {self.workers} are not possible in a cluster of {cpus:g} CPUs; expected at most one for each CPU"
            )

    def _resources(self) -> str:
        found = self._ray.cluster_resources()
        return f"expected as many free CPUs or GPUs; the cluster has {found.get('CPU', 0):g} and {found.get('GPU', 0):g}"

    def _submit(self) -> None:
        """Give tasks to workers that have few."""
        for depth in range(_AHEAD):
            for slot in self._slots:
                if slot.starting is None and len(slot.tasks) <= depth:
                    while self._todo and self._todo[0].future.cancelled():
                        self._todo.popleft()
                    if not self._todo:
                        return
                    task = self._todo.popleft()
                    task.reference = slot.actor.run.remote(*task.call.arguments, task.piece)
                    slot.tasks.append(task)

    def _collect(self) -> None:
        """Wait for a result, and replace workers that are lost or exceed the timeout."""
        slots = {
            slot.starting or slot.tasks[0].reference: slot
            for slot in self._slots
            if slot.starting or slot.tasks
        }
        start = time.monotonic()
        ready, _ = self._ray.wait(list(slots), num_returns=1, timeout=1.0)
        waited = time.monotonic() - start
        for reference in ready:
            self._take(slots.pop(reference), reference)
        for slot in slots.values():
            slot.waited += waited
            if slot.starting is None and slot.waited > self.timeout:
                self._lose(slot, TimeoutError(f"no result after {self.timeout:g} s of {TIMEOUT_VARIABLE}"))
        if all(slot.starting is not None and slot.waited > self._start_timeout for slot in self._slots):
            raise WorkerLostError(
                f"workers: all {self.workers} were lost and none could be started within {self._start_timeout:g} s; "
                f"{self._resources()}"
            )

    def _take(self, slot: _Slot, reference: Any) -> None:
        """Take the result of a worker's first task, or of its start."""
        errors = self._ray.exceptions
        result = failure = None
        try:
            result = self._ray.get(reference)
        except errors.TaskCancelledError:
            pass
        except errors.RayTaskError as error:
            failure = error.cause
            failure.__cause__ = error  # shows the traceback in the worker
        except errors.RayError as error:
            if slot.starting is None:
                self._lose(slot, error)
            else:
                time.sleep(0.1)
                self._replace(slot)
            return
        slot.waited = 0.0
        if slot.starting is not None:
            slot.starting = None
            if failure is not None:
                raise failure
            return
        task = slot.tasks.popleft()
        if task.future.cancelled():
            return
        if failure is None:
            task.future.set_result(result)
        else:
            task.future.set_exception(failure)

    def _kill(self, slot: _Slot) -> None:
        with contextlib.suppress(Exception):  # it is gone, or Ray is
            self._ray.kill(slot.actor)

    def _replace(self, slot: _Slot) -> None:
        """Start another worker in the place of a lost one."""
        self._kill(slot)
        slot.actor = self._make.remote()
        slot.starting = slot.actor.prepare.remote(self._settings())

    def _lose(self, slot: _Slot, error: Exception) -> None:
        """Replace a lost worker and take back its tasks, the first of which it was running."""
        self._replace(slot)
        slot.waited = 0.0
        first = slot.tasks.popleft()
        self._todo.extendleft(reversed(slot.tasks))
        slot.tasks.clear()
        first.losses += 1
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        place = first.call.describe(first.piece)
        if first.losses == TRIES:
            if not first.future.cancelled():
                first.future.set_exception(
                    WorkerLostError(
                        f"workers: {place} ended their worker {TRIES} times ({reason}). The most frequent cause is too "
                        "little memory: use fewer workers, or smaller batches in the loader"
                    )
                )
            return
        self._todo.appendleft(first)
        if not first.call.warned:
            first.call.warned = True
            warnings.warn(
                f"workers: one was lost with {place} ({reason}); its work is done again; further losses are not reported",
                UserWarning,
                stacklevel=2,
            )


def _import_ray() -> Any:
    for name, value in _RAY_SETTINGS.items():  # Ray reads some of them at its import
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise PoolError(
            f"ray: it cannot be imported ({error}); expected the extra: pip install 'openood-adascale[ray]'"
        ) from error
    return ray


def _has_autoscaler() -> bool:
    """Return True if the cluster that Ray is connected to may add nodes by itself."""
    from ray.experimental.internal_kv import _internal_kv_get

    if _internal_kv_get("__autoscaler_v2_enabled", namespace="__autoscaler") == b"1":
        return True
    status = json.loads(_internal_kv_get("__autoscaling_status") or "{}")
    types = (status.get("autoscaler_report") or {}).get("node_type_mapping") or {}
    # Without an autoscaler each node has a type of its own.
    return not all(re.fullmatch("node_[0-9a-f]+", kind) for kind in types.values())


def _timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, "").strip() or str(TIMEOUT)
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    raise PoolError(f"{TIMEOUT_VARIABLE}: {text!r} is not allowed; expected seconds, a number above 0")

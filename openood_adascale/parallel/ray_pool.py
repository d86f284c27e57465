"""The pool of workers on Ray.

The user's process is the driver and keeps the script, its files and its progress bars. Each worker is a Ray actor that keeps
the shared objects by key and runs numbered pieces. This pool runs lost pieces again itself, instead of Ray, so that an error
can name the images of a piece that ends its workers.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import sys
import time
import traceback
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from .errors import PoolError, WorkerLostError
from .pool import Pool, SharedObject, enter_worker
from .sending import import_modules, inspect_object, own_modules, portable
from .torch_state import Flags, arithmetic_flags, set_arithmetic_flags, versions

P = TypeVar("P")
R = TypeVar("R")
TIMEOUT_VARIABLE = "OPENOOD_ADASCALE_TIMEOUT"
TIMEOUT = 600.0
"""Seconds that a piece may take before its worker is replaced."""
TRIES = 3
KEPT = 4
"""Shared objects that each worker keeps."""
_AHEAD = 2  # pieces under way on a worker
_END = object()
_SETTINGS = {
    "RAY_worker_niceness": "0",  # with Ray's 15, workers starve beside busy processes
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


class Failure(NamedTuple):
    """An exception that a piece raised, with its traceback as text."""

    error: BaseException
    text: str


class RemoteTracebackError(Exception):
    """The traceback of an exception in a worker, as the cause of the exception."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class WorkerSettings:
    """Settings that workers take over from the driver, or check against their own."""

    path: list[str]
    threads: int
    flags: Flags
    versions: dict[str, str]
    modules: dict[str, str]
    """Hashes of the source files of the user's modules."""
    workers_of_nodes: dict[str, int]
    """Workers by Ray's node id."""


class Worker:
    """A Ray actor that runs pieces of work."""

    def __init__(self) -> None:
        self._objects: OrderedDict[str, Any] = OrderedDict()
        self._settings: WorkerSettings | None = None

    def node(self) -> str:
        """Return Ray's id of the node."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def prepare(self, settings: WorkerSettings) -> None:
        """Take over the driver's settings.

        Raises:
            PoolError: If a version or a module differs from the driver's.
        """
        import torch

        if settings == self._settings:
            return
        sys.path.extend(place for place in settings.path if place not in sys.path)
        where = f"workers: node {self.node()[:8]}"
        if settings.versions != versions():
            raise PoolError(
                f"{where} has {versions()}; expected {settings.versions} as in this process: install the same versions "
                "there, or pass a runtime_env to ray.init"
            )
        for name, reason in import_modules(settings.modules).items():
            raise PoolError(
                f"{where} cannot use module {name!r} ({reason}); copy it there, put it on PYTHONPATH before Ray starts, or "
                "pass a runtime_env to ray.init"
            )
        sharing = settings.workers_of_nodes.get(self.node(), 1)
        torch.set_num_threads(max(1, min(settings.threads, (os.cpu_count() or 1) // sharing)))
        set_arithmetic_flags(settings.flags)
        if torch.cuda.is_available():
            torch.cuda.set_device(0)  # the only one that Ray shows to this worker
        enter_worker(sharing)
        self._settings = settings

    def run(
        self, settings: WorkerSettings, function: bytes, shared: dict[str, tuple[str, list[Any]]], piece: Any
    ) -> Any:
        """Return the result of a piece, or a :class:`Failure`."""
        import cloudpickle

        try:
            self.prepare(settings)
            objects = {name: self._object(key, reference) for name, (key, reference) in shared.items()}
            return cloudpickle.loads(function)(objects, piece)
        except BaseException as error:  # SystemExit, too: Ray would end the worker for good
            return Failure(portable(error), traceback.format_exc())

    def _object(self, key: str, reference: list[Any]) -> Any:
        import ray

        if key not in self._objects:
            self._objects[key] = ray.get(reference[0])
            while len(self._objects) > KEPT:
                self._objects.popitem(last=False)
        self._objects.move_to_end(key)
        return self._objects[key]


@dataclass(eq=False)
class _Run:
    """One call of :meth:`RayPool.map`."""

    pieces: Iterator[Any]
    arguments: tuple[WorkerSettings, bytes, dict[str, tuple[str, list[Any]]]]
    describe: Callable[[Any], str]
    taken: int = 0
    exhausted: bool = False
    closed: bool = False
    again: deque[_Task] = field(default_factory=deque)
    results: dict[int, Any] = field(default_factory=dict)

    def next_task(self, limit: int) -> _Task | None:
        """Return a lost task or else the next one, or None if its number is not below ``limit`` or no piece is left."""
        if self.again:
            return self.again.popleft()
        if self.exhausted or self.taken >= limit:
            return None
        piece = next(self.pieces, _END)
        if piece is _END:
            self.exhausted = True
            return None
        self.taken += 1
        return _Task(self, self.taken - 1, piece)


@dataclass(eq=False)
class _Task:
    """A piece under way."""

    run: _Run
    number: int
    piece: Any
    reference: Any = None
    losses: int = 0


@dataclass(eq=False)
class _Slot:
    """A worker and its tasks, of which it runs the first."""

    actor: Any
    tasks: deque[_Task] = field(default_factory=deque)
    since: float = 0.0
    """Time at which the first task, or the start of the worker, began."""
    starting: Any = None
    """Reference of :meth:`Worker.prepare` while a replacement starts."""

    def submit(self, task: _Task) -> None:
        """Add a task."""
        task.reference = self.actor.run.remote(*task.run.arguments, task.piece)
        if not self.tasks:
            self.since = time.monotonic()
        self.tasks.append(task)


class RayPool(Pool):
    """Workers on Ray; see :func:`~.current.ray_workers`.

    With the driver's number of threads per worker, results equal those of one process bit for bit.
    """

    def __init__(self, workers: int | None = None, address: str = "local", dashboard: bool = False) -> None:
        self._process = os.getpid()
        self._slots: list[_Slot] = []
        self._references: OrderedDict[str, tuple[Any, set[str]]] = OrderedDict()
        self._warned = False
        self._alive = 0.0  # time at which some worker was last seen to be there
        self._ray = _import_ray()
        self._timeout = _timeout()
        self._start_timeout = max(60.0, self._timeout)
        if workers is not None and (not isinstance(workers, int) or workers < 1):
            raise PoolError(f"workers: {workers!r} is not allowed; expected a whole number from 1 on")
        self._started = _start(self._ray, workers, address, dashboard)
        try:
            gpus = int(self._ray.cluster_resources().get("GPU", 0))
            if workers is None and not gpus:
                raise PoolError(
                    "workers: None is not allowed without GPUs; expected their number (--ray-workers N)"
                )
            self.workers = workers or gpus
            # More workers than GPUs share them evenly.
            options = {"num_gpus": 1 / math.ceil(self.workers / gpus)} if gpus else {}
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
        import cloudpickle

        if not self._slots:
            raise PoolError(
                "workers: the pool is closed; expected a call inside the with block of ray_workers"
            )
        modules = inspect_object("function", function)[1]
        sent = {}
        for name, one in shared.items():
            if one.key not in self._references:
                needed = inspect_object(name, one.value)[1]
                self._references[one.key] = self._ray.put(one.value), needed
                while len(self._references) > KEPT:
                    self._references.popitem(last=False)
            self._references.move_to_end(one.key)
            reference, needed = self._references[one.key]
            modules |= needed
            sent[name] = (one.key, [reference])
        run = _Run(iter(pieces), (self._settings(modules), cloudpickle.dumps(function), sent), describe)
        self._alive = time.monotonic()
        try:
            number = 0
            while True:
                while number not in run.results:
                    self._submit(run, number + 2 * _AHEAD * self.workers)
                    if run.exhausted and number == run.taken:
                        return
                    self._collect()
                result = run.results.pop(number)
                if isinstance(result, Failure):
                    raise result.error from RemoteTracebackError(result.text)
                yield result
                number += 1
        finally:
            run.closed = True
            for slot in self._slots:
                for task in list(slot.tasks)[1:]:
                    if task.run is run:
                        self._ray.cancel(task.reference)

    def close(self) -> None:
        """Stop the workers, and Ray if this pool has started it."""
        for slot in self._slots:
            with contextlib.suppress(Exception):
                self._ray.kill(slot.actor)
        self._slots = []
        if self._started:
            self._started = False
            self._ray.shutdown()
            _print_errors(self._ray, True)

    def _settings(self, modules: Iterable[str] = ()) -> WorkerSettings:
        import torch

        return WorkerSettings(
            path=list(sys.path),
            threads=torch.get_num_threads(),
            flags=arithmetic_flags(),
            versions=versions(),
            modules=own_modules(set(modules)),
            workers_of_nodes=self._workers_of_nodes,
        )

    def _first_answers(self, references: list[Any]) -> list[Any]:
        """Return the workers' answers.

        Raises:
            PoolError: If a worker does not start.
        """
        errors = self._ray.exceptions
        try:
            answers: list[Any] = self._ray.get(references, timeout=self._start_timeout)
        except errors.GetTimeoutError as error:
            raise PoolError(
                f"workers: {self.workers} did not start within {self._start_timeout:g} s; expected as many free CPUs or "
                f"GPUs in the cluster, which has {self._resources()}"
            ) from error
        except errors.RayTaskError as error:
            raise getattr(error, "cause", None) or error from error
        except errors.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise PoolError(
                f"workers: they cannot start ({lines[-1]}); install openood_adascale and its requirements on each node, or "
                "pass a runtime_env to ray.init"
            ) from error
        return answers

    def _resources(self) -> dict[str, float]:
        found = self._ray.cluster_resources()
        return {name: found.get(name, 0) for name in ("CPU", "GPU")}

    def _submit(self, run: _Run, limit: int) -> None:
        """Give tasks with numbers below ``limit`` to workers that have few."""
        for depth in range(_AHEAD):
            for slot in self._slots:
                if slot.starting is None and len(slot.tasks) <= depth:
                    if (task := run.next_task(limit)) is None:
                        return
                    slot.submit(task)

    def _collect(self) -> None:
        """Wait for results of any run, and replace workers that are lost or exceed the timeout.

        Raises:
            WorkerLostError: If no worker can be started.
        """
        waiting = {
            slot.starting or slot.tasks[0].reference: slot
            for slot in self._slots
            if slot.starting or slot.tasks
        }
        ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=1.0)
        if ready:  # and all others that are ready, so that a slow consumer is not mistaken for slow workers
            ready, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        for reference in ready:
            self._take(waiting.pop(reference), reference)
        now = time.monotonic()
        for slot in waiting.values():
            if slot.starting is not None and now - slot.since > self._start_timeout:
                self._replace(slot)
            elif slot.starting is None and now - slot.since > self._timeout:
                self._lose(slot, TimeoutError(f"no result after {self._timeout:g} s"))
        if any(slot.starting is None for slot in self._slots):
            self._alive = now
        elif now - self._alive > self._start_timeout:
            raise WorkerLostError(
                f"workers: all {self.workers} were lost and none could be started within {self._start_timeout:g} s; "
                f"expected free CPUs or GPUs in the cluster, which has {self._resources()}"
            )

    def _take(self, slot: _Slot, reference: Any) -> None:
        """Take the result of a worker's first task, or of its start."""
        errors = self._ray.exceptions
        task = None if slot.starting is not None else slot.tasks[0]
        try:
            result = self._ray.get(reference)
        except errors.RayTaskError as error:  # outside the function: its result cannot be pickled, say
            cause = getattr(error, "cause", None) or error
            if task is None:
                raise cause from error
            result = Failure(cause, str(error))
        except errors.TaskCancelledError:
            result = None
        except errors.RayError as error:
            if task is not None:
                self._lose(slot, error)
            else:
                time.sleep(0.1)
                self._replace(slot)
            return
        slot.since = time.monotonic()
        if task is None:
            slot.starting = None
            return
        slot.tasks.popleft()
        if not task.run.closed:
            task.run.results[task.number] = result

    def _replace(self, slot: _Slot) -> None:
        """Start another worker in the place of a lost one."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(slot.actor)
        slot.actor = self._make.remote()
        slot.starting = slot.actor.prepare.remote(self._settings())
        slot.since = time.monotonic()

    def _lose(self, slot: _Slot, error: Exception) -> None:
        """Replace a lost worker and take back its tasks, the first of which it was running."""
        tasks, slot.tasks = slot.tasks, deque()
        self._replace(slot)
        for task in reversed(tasks):
            if not task.run.closed:
                task.run.again.appendleft(task)
        first = tasks[0]
        if first.run.closed:
            return
        first.losses += 1
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        place = first.run.describe(first.piece)
        if first.losses >= TRIES:
            text = (
                f"workers: {place} ended their worker {TRIES} times ({reason}). The most frequent cause is too little "
                "memory: use fewer workers, or smaller batches in the loader"
            )
            first.run.again.remove(first)
            first.run.results[first.number] = Failure(WorkerLostError(text), str(error))
            return
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"workers: one was lost with {place} ({reason}); its work is done again; further losses are not reported",
                UserWarning,
                stacklevel=2,
            )


def _import_ray() -> Any:
    for name, value in _SETTINGS.items():  # Ray reads some of them at its import
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise PoolError(
            f"ray: it cannot be imported ({error}); expected the extra: pip install 'openood-adascale[ray]'"
        ) from error
    return ray


def _print_errors(ray: Any, shown: bool) -> None:
    """Switch Ray's lines about lost workers on standard output, which ``log_to_driver=False`` leaves, on or off."""
    module = getattr(getattr(ray, "_private", None), "worker", None)
    present = getattr(module, "print_to_stdstream", None)
    if module is None or present is None:
        return
    original = getattr(present, "__wrapped__", present)

    @functools.wraps(original)
    def silent(*args: Any, **keywords: Any) -> None:
        pass

    module.print_to_stdstream = original if shown else silent


def _timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, "").strip()
    try:
        seconds = float(text) if text else TIMEOUT
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise PoolError(f"{TIMEOUT_VARIABLE}: {text!r} is not allowed; expected seconds, a number above 0")
    return seconds


def _start(ray: Any, workers: int | None, address: str, dashboard: bool) -> bool:
    """Start or join Ray, and return True if it has to be stopped again.

    Raises:
        PoolError: If that fails.
    """
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"address": address}
    if address == "local":
        options["num_cpus"] = max(workers or 1, os.cpu_count() or 1)
        options["include_dashboard"] = dashboard
    _print_errors(ray, False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        _print_errors(ray, True)
        text = " ".join(str(error).split())
        hint = "; the dashboard needs ray[default]" if dashboard else ""
        raise PoolError(
            f"ray: {address!r} cannot be used ({type(error).__name__}: {text}); expected local, auto with a cluster that is "
            f"running, or HOST:PORT of one{hint}"
        ) from error
    return True

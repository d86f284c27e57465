"""The interface of the pool of workers, and the pool in use."""

from __future__ import annotations

import contextvars
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from .errors import PoolError

POOL_VARIABLE = "OPENOOD_ADASCALE_RAY"
P = TypeVar("P")
R = TypeVar("R")


class SharedObject(NamedTuple):
    """An object that all pieces of work need; it is sent to each node once."""

    key: str
    """Workers keep the latest objects by their keys."""
    value: Any


class Pool(ABC):
    """Workers that run numbered pieces of work."""

    workers: int
    """Number of workers."""

    def usable(self) -> bool:
        """Return False in a process that has inherited the pool by a fork, such as a DataLoader's."""
        return True

    @abstractmethod
    def map(
        self,
        function: Callable[[dict[str, Any], P], R],
        pieces: Iterable[P],
        shared: Mapping[str, SharedObject],
        describe: Callable[[P], str] = str,
    ) -> Iterator[R]:
        """Yield ``function(objects, piece)`` for each piece, in order.

        Args:
            function: Called with the shared objects by name, and a piece.
            pieces: Pieces of work, which should be small. They are taken from the iterable as workers need them.
            shared: Objects that every piece needs.
            describe: Returns the text that names a piece in errors.

        Raises:
            PoolError: If an object cannot be sent to the workers.
            WorkerLostError: If a piece ended its worker three times.
            Exception: The original exception of ``function``.
        """


class LocalPool(Pool):
    """The calling process."""

    workers = 1

    def map(
        self,
        function: Callable[[dict[str, Any], P], R],
        pieces: Iterable[P],
        shared: Mapping[str, SharedObject],
        describe: Callable[[P], str] = str,
    ) -> Iterator[R]:
        """Yield ``function(objects, piece)`` for each piece, one after another; see :meth:`Pool.map`."""
        objects = {name: one.value for name, one in shared.items()}
        for piece in pieces:
            yield function(objects, piece)


LOCAL = LocalPool()
CHOSEN: contextvars.ContextVar[Pool] = contextvars.ContextVar("pool")
"""The pool that :func:`~.current.ray_workers` has started."""
_workers_of_node = 1


def parse_address(text: str) -> tuple[str, int | None]:
    """Return address and number of workers of ``local``, ``auto`` or ``HOST:PORT``, followed by ``:WORKERS`` or not.

    >>> parse_address("local:8"), parse_address("auto"), parse_address("10.0.0.1:6379:16")
    (('local', 8), ('auto', None), ('10.0.0.1:6379', 16))

    Raises:
        PoolError: If the text has another form.
    """
    parts = text.strip().split(":")
    place = parts[:1] if parts[0] in ("local", "auto") else parts[:2]
    rest = parts[len(place) :]
    valid = len(rest) <= 1 and all(part.isdecimal() and int(part) > 0 for part in rest)
    if place[0] not in ("local", "auto"):
        valid = valid and len(place) == 2 and bool(place[0]) and place[1].isdecimal()
    if not valid:
        raise PoolError(
            f"{POOL_VARIABLE}: {text!r} is not allowed; expected local, auto or HOST:PORT, and :WORKERS if wanted"
        )
    return ":".join(place), int(rest[0]) if rest else None


def reader_processes(total: int) -> int:
    """Return the number of image reading processes for this process: ``total`` divided among the workers of its node."""
    return total if _workers_of_node == 1 else -(-total // _workers_of_node) if total else 0


def enter_worker(workers_of_node: int) -> None:
    """Make :func:`~.current.current_pool` the local pool in this process, which is one of several workers of its node."""
    global _workers_of_node
    os.environ.pop(POOL_VARIABLE, None)  # for its threads and child processes, too
    _workers_of_node = workers_of_node
    CHOSEN.set(LOCAL)


def refuse_torchrun() -> None:
    """Raise if torchrun has started several processes of this program.

    Raises:
        PoolError: If it has.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise PoolError(
            "torchrun: several processes of one program are not supported; start it once, with --ray local "
            "--ray-workers N, or with OPENOOD_ADASCALE_RAY=local:N"
        )

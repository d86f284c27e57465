"""The interface of the pool of workers, and the pool that is this process."""

from __future__ import annotations

import contextvars
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

POOL_VARIABLE = "OPENOOD_ADASCALE_RAY"
P = TypeVar("P")
R = TypeVar("R")


class PoolError(ValueError):
    """A pool that cannot be started, or an object that cannot be sent to its workers."""


class WorkerLostError(RuntimeError):
    """Work that ended its worker three times; names the images."""


class SharedObject(NamedTuple):
    """An object that all pieces of work need; it is sent to each node once."""

    key: str
    """Workers keep the latest objects by their keys."""
    value: Any


class Pool:
    """Runs numbered pieces of work in the calling process; the base class of the pool on Ray."""

    workers = 1
    """Number of workers."""

    def usable(self) -> bool:
        """Return False in a process that has inherited the pool by a fork, such as a DataLoader's."""
        return True

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
        objects = {name: one.value for name, one in shared.items()}
        for piece in pieces:
            yield function(objects, piece)


LOCAL = Pool()
CHOSEN: contextvars.ContextVar[Pool] = contextvars.ContextVar("pool")
"""The pool that :func:`~openood_adascale.parallel.ray_workers` has started."""
_workers_of_node = 1


def parse_address(text: str) -> tuple[str, int | None]:
    """Return address and number of workers of ``local``, ``auto`` or ``HOST:PORT``, followed by ``:WORKERS`` or not.

    >>> parse_address("local:8"), parse_address("auto"), parse_address("10.0.0.1:6379:16")
    (('local', 8), ('auto', None), ('10.0.0.1:6379', 16))
    """
    found = re.fullmatch(r"(local|auto|(?!(?:local|auto):)[^:]+:\d+)(?::0*([1-9]\d*))?", text.strip())
    if found is None:
        raise PoolError(
            f"{POOL_VARIABLE}: {text!r} is not allowed; expected local, auto or HOST:PORT, and :WORKERS if wanted"
        )
    return found[1], int(found[2]) if found[2] else None


def reader_processes(total: int) -> int:
    """Return the number of image reading processes for this process: ``total`` divided among the workers of its node."""
    return -(-total // _workers_of_node)


def enter_worker(workers_of_node: int) -> None:
    """Make the local pool the current one in this process, which is one of several workers of its node."""
    global _workers_of_node
    os.environ.pop(POOL_VARIABLE, None)  # for its threads and child processes, too
    _workers_of_node = workers_of_node


def refuse_torchrun() -> None:
    """Raise a PoolError if torchrun has started several processes of this program."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise PoolError(
            "torchrun: several processes of one program are not supported; start it once, with --ray local "
            "--ray-workers N, or with OPENOOD_ADASCALE_RAY=local:N"
        )

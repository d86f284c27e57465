"""The pool in use."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager

from .pool import CHOSEN, LOCAL, POOL_VARIABLE, Pool, parse_address
from .ray_pool import RayPool

_environment: Pool | None = None  # the pool that the environment variable asks for


def current_pool() -> Pool:
    """Return the pool in use: of :func:`ray_workers`, of ``OPENOOD_ADASCALE_RAY``, or else this process.

    Raises:
        PoolError: If the environment variable cannot be used.
    """
    pool = CHOSEN.get(None) or (_environment_pool() if os.environ.get(POOL_VARIABLE) else LOCAL)
    return pool if pool.usable() else LOCAL


def _environment_pool() -> Pool:
    global _environment
    if _is_child():
        return LOCAL
    if _environment is None or not _environment.usable():
        address, workers = parse_address(os.environ[POOL_VARIABLE])
        pool = RayPool(workers, address)
        atexit.register(pool.close)
        _environment = pool
    return _environment


def _is_child() -> bool:
    """Return True in a process of multiprocessing, such as a DataLoader's."""
    import multiprocessing

    return multiprocessing.parent_process() is not None


@contextmanager
def ray_workers(
    workers: int | None = None, address: str = "local", dashboard: bool = False
) -> Iterator[Pool]:
    """Run all passes over images inside the ``with`` block on Ray workers.

    Args:
        workers: Number of workers (default: one for each GPU of the cluster; required without GPUs).
        address: ``local`` to start Ray on this machine, ``auto`` to join a cluster that is there, or ``HOST:PORT``.
        dashboard: Start Ray's dashboard; needs ``ray[default]``.

    Raises:
        PoolError: If Ray is not installed or cannot be started, or ``workers`` is missing or out of range.
    """
    pool = RayPool(workers, address, dashboard)
    token = CHOSEN.set(pool)
    try:
        yield pool
    finally:
        CHOSEN.reset(token)
        pool.close()

"""The pool of workers that runs forward passes: this process, unless Ray is asked for."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager

from .pool import CHOSEN as CHOSEN
from .pool import LOCAL as LOCAL
from .pool import POOL_VARIABLE as POOL_VARIABLE
from .pool import Pool as Pool
from .pool import PoolError as PoolError
from .pool import SharedObject as SharedObject
from .pool import WorkerLostError as WorkerLostError
from .pool import parse_address as parse_address
from .pool import reader_processes as reader_processes
from .pool import refuse_torchrun as refuse_torchrun
from .sending import content_key as content_key


def current_pool() -> Pool:
    """Return the pool in use: of :func:`ray_workers`, of ``OPENOOD_ADASCALE_RAY``, or else this process."""
    pool = CHOSEN.get(LOCAL)
    if pool is LOCAL and os.environ.get(POOL_VARIABLE) and multiprocessing.parent_process() is None:
        pool = _environment_pool()
    return pool if pool.usable() else LOCAL


@functools.cache
def _environment_pool() -> Pool:
    from .ray_pool import RayPool

    address, workers = parse_address(os.environ[POOL_VARIABLE])
    pool = RayPool(workers, address)
    atexit.register(pool.close)
    return pool


@contextmanager
def ray_workers(
    workers: int | None = None, address: str = "local", dashboard: bool = False
) -> Iterator[Pool]:
    """Run all passes over images inside the ``with`` block on Ray workers.

    Args:
        workers: Number of workers (default: one for each GPU of the cluster; required without GPUs).
        address: ``local`` to start Ray on this machine, ``auto`` to join a running cluster, or ``HOST:PORT``.
        dashboard: Start Ray's dashboard; needs ``ray[default]``.

    Raises:
        PoolError: If Ray is not installed or cannot be started, or ``workers`` is missing, out of range, or more than the
            cluster has CPUs and does not grow.
    """
    from .ray_pool import RayPool

    pool = RayPool(workers, address, dashboard)
    token = CHOSEN.set(pool)
    try:
        yield pool
    finally:
        CHOSEN.reset(token)
        pool.close()

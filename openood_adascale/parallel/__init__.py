"""The pool of workers that runs forward passes, in this process or on Ray."""

from __future__ import annotations

from .current import current_pool as current_pool
from .current import ray_workers as ray_workers
from .pool import CHOSEN as CHOSEN
from .pool import POOL_VARIABLE as POOL_VARIABLE
from .pool import Pool as Pool
from .pool import PoolError as PoolError
from .pool import SharedObject as SharedObject
from .pool import WorkerLostError as WorkerLostError
from .pool import parse_address as parse_address
from .pool import reader_processes as reader_processes
from .pool import refuse_torchrun as refuse_torchrun
from .sending import content_key as content_key

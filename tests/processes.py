"""Several processes as torchrun starts them, on this machine and with one thread each."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import quick_process

ROOT = Path(__file__).parents[1]


def environment(count, rank, port, **more):
    """What torchrun would tell a process."""
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    told = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_PORT": port,
    }
    return {
        **os.environ, **{name: str(value) for name, value in told.items()}, "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more,
    }  # fmt: skip


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(count, arguments, cwd=None, ordinary=False, **more):
    """``count`` processes, without anyone who looks after them; ``ordinary`` as in :func:`quick_process.run`."""
    port = free_port()
    return [
        quick_process.start(arguments, cwd, environment(count, rank, port, **more), ordinary=ordinary)
        for rank in range(count)
    ]


def finish(processes, timeout=300):
    """(exit status, standard output, standard error) of each."""
    try:
        told = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *both) for process, both in zip(processes, told, strict=True)]


def run(count, arguments, cwd=None, check=True, timeout=300, **more):
    """Start them and wait for their end; what process 0 printed, or of all where ``check`` is False."""
    done = finish(start(count, arguments, cwd, **more), timeout)
    if not check:
        return done
    for status, _, stderr in done:
        assert status == 0, stderr
    return done[0][1]

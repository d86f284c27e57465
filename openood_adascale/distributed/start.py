"""The group that torchrun, or a caller, has started."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .._version import __version__
from .links import lost_if_it_fails, patience
from .servant import Servant
from .team import Team


def launched() -> bool:
    """Whether torchrun, or something like it, has started this process as one of several."""
    named = all(os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return named and dist.is_available() and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def launched_team(device: str | None = None) -> Iterator[Team | Servant | None]:
    """The group that was launched, for as long as this lasts; None where this process is alone.

    On a machine with GPUs each process takes one of its own, if there are enough, and the group speaks by nccl.

    Args:
        device: ``cpu`` or the like, where the caller has chosen it.

    Raises:
        CannotBeSent: the processes are not alike.
        ProcessLost: one of them does not come.
    """
    if not launched():
        yield None
        return
    wire = torch.device("cpu")
    if torch.cuda.is_available() and (device or "cuda").startswith("cuda"):
        count, place = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        torch.cuda.set_device(place % count)
        # nccl takes one process per GPU.
        if int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])) <= count:
            wire = torch.device("cuda", place % count)
    waits = datetime.timedelta(seconds=patience())
    backend = "gloo" if wire.type == "cpu" else "cpu:gloo,cuda:nccl"
    with lost_if_it_fails(lambda: "one of the processes"):
        store, rank, size = next(dist.rendezvous("env://", timeout=waits))
        store = _of_this_attempt(store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    yield _member(store, wire)
    dist.destroy_process_group()  # after an error, others may be gone


def _of_this_attempt(store: Any) -> Any:
    """After ``torchrun --max-restarts`` has started all processes of a machine again, its store has what the earlier ones
    said. Where there are more machines, each start has a store of its own, and their counts of starts can differ."""
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def callers_team() -> Team | Servant | None:
    """The group that the caller has made with ``torch.distributed.init_process_group``; None where there is none."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    nccl = dist.get_backend() == "nccl"
    wire = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
    # Another one would need an address and a port that all can reach, which this one has.
    return _member(dist.distributed_c10d._get_default_store(), wire)


def _member(store: Any, wire: torch.device) -> Team | Servant:
    return (Team if dist.get_rank() == 0 else Servant)(store, wire, versions())


def versions() -> dict[str, str]:
    """What has to be the same in all processes of a group."""
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "openood_adascale": f"{__version__} ({_digest_of_package()})",
    }


@lru_cache(maxsize=1)
def _digest_of_package() -> str:
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()

"""A group of processes as one of them sees it."""

from __future__ import annotations

import itertools
import json
import os
import pickle
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from ..errors import CannotBeSent
from .links import SILENCE, Keys, Links, lost_if_it_fails, patience, wait_until
from .pulse import Pulse
from .work import Cache, Share

RESULT, ERROR, END = range(3)
"""What a process that works sends: of a piece, instead of one, after the last."""


_made = itertools.count()


class Member:
    """What a process that directs and one that works have in common.

    Args:
        store: of the group.
        wire: where the group has its backend: a GPU with nccl, the CPU with gloo.
        versions: of what has to be the same in all processes, by name.

    Raises:
        CannotBeSent: they differ.
        ProcessLost: one of the processes does not come.
        ValueError: ``OPENOOD_ADASCALE_TIMEOUT`` is no number above 0.
    """

    directs: ClassVar[bool]
    """Whether this is the process that the others work for."""

    def __init__(self, store: Any, wire: torch.device, versions: Mapping[str, str]) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.patience = patience()
        local = (
            int(os.environ.get("LOCAL_RANK", self.rank)),
            int(os.environ.get("LOCAL_WORLD_SIZE", self.size)),
        )
        self.share = Share(*local)
        self.cache = Cache()
        self.jobs = 0
        # An earlier group of these processes, of which all have made as many, has left keys of its own.
        prefix = f"openood_adascale/{next(_made)}"
        self.keys, pulses = (Keys(dist.PrefixStore(prefix, store)) for _ in range(2))
        others = range(1, self.size) if self.directs else [0]
        silence = min(SILENCE, self.patience / 3)
        self.pulse = Pulse(pulses, self.rank, others, silence, self.alarm)
        self._require_same(versions)
        self.links = Links(wire, self.patience)

    def alarm(self, what: str) -> None:
        """Called in another thread when a process is lost; it is told where something is waited for, too."""

    def _require_same(self, versions: Mapping[str, str]) -> None:
        self.keys.set(f"versions/{self.rank}", json.dumps(dict(versions)))
        self.wait_for_all("versions/{}", "has not come", [0, *range(1, self.size)])
        mine = dict(versions)
        for rank in range(self.size):
            theirs = json.loads(self.keys.get(f"versions/{rank}"))
            if other := [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]:
                told = ", ".join(f"{name} {theirs.get(name)} and not {mine.get(name)}" for name in other)
                self.pulse.stop()
                raise CannotBeSent(
                    f"{self.pulse.named(rank)} has {told}; expected the same as {self.pulse.named(self.rank)}"
                )

    def tell_all(self, content: bytes | None) -> bytes:
        """What process 0 gives, in all of them, which give None."""
        with lost_if_it_fails(lambda: "one of the processes"):
            return self.links.broadcast(content)

    def wait_for_all(self, key: str, otherwise: str, ranks: Any = None, seconds: float | None = None) -> None:
        seconds = self.patience if seconds is None else seconds
        for rank in range(1, self.size) if ranks is None else ranks:
            late = f"{{}} {otherwise} for {seconds:g} seconds"
            wait_until(
                partial(self.keys.has, key.format(rank)),
                self.pulse.check,
                seconds,
                partial(self._late, rank, late),
            )

    def _late(self, rank: int, text: str) -> str:
        return text.format(self.pulse.named(rank))

    def forget(self, keys: Mapping[str, str]) -> None:
        for key in keys.values():
            self.cache.drop(key)


def portable(error: Exception, whose: str) -> Exception:
    """``error`` if another process can make it anew; else one that tells of it."""
    try:
        again = pickle.loads(pickle.dumps(error))
        if type(again) is type(error) and str(again) == str(error):
            return error
    except Exception:
        pass
    return RuntimeError(f"{whose}: {type(error).__name__}: {error}")

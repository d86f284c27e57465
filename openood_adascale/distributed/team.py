"""The processes of a group: one directs and asks for work, the others do it."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from ..errors import CannotBeSent, ProcessLost
from .arithmetic import arithmetic
from .links import lost_if_it_fails, wait_until
from .member import ERROR, RESULT, Member
from .work import Work, digests, packed, sources

FAREWELL = 10.0
"""Seconds that the others have to see that there is no more work."""
_directed: Team | None = None


def active_team() -> Team | None:
    """The group that this process directs; None where it works alone, or the group is at work for it already."""
    return None if _directed is None or _directed.busy else _directed


def is_directing() -> bool:
    """Whether this process directs a group."""
    return _directed is not None


class Team(Member):
    """A group as process 0 sees it, which the others work for."""

    directs = True
    busy = False
    """Whether work is under way."""
    _lost = ""
    """Why there can be no more work."""

    @contextmanager
    def directing(self) -> Iterator[None]:
        """Have what is within directed to all processes.

        Raises:
            ProcessLost: one of them is lost.
        """
        global _directed
        _directed = self
        try:
            yield
        finally:
            _directed = None
            with suppress(ProcessLost):
                self.keys.set("end")
                if not self._lost:
                    self.wait_for_all("gone/{}", "stays", seconds=FAREWELL)
            self.pulse.stop()

    def do(self, work: Work, count: int) -> Iterator[Any]:
        """The results of ``count`` pieces, in order; piece i is done by process i modulo their number.

        Raises:
            CannotBeSent: the work cannot be sent.
            ProcessLost: a process is lost.
            Exception: what a piece raised, in its place.
        """
        if self._lost:
            raise ProcessLost(self._lost)
        self.busy = True
        try:
            parts = work.parts()
            job = self._announce(work, parts, count)
            yield from self._results(job, work, {name: value for name, (_, value) in parts.items()}, count)
        except ProcessLost as error:
            self._lost = str(error)
            raise
        finally:
            self.busy = False

    def _announce(self, work: Work, parts: Mapping[str, tuple[str, Any]], count: int) -> str:
        """Have all know of work; what it is called."""
        keys = {name: key for name, (key, _) in parts.items()}
        told = {
            "path": list(sys.path),
            "arithmetic": arithmetic(),
            "sources": digests(sources(work.uses())),
            "keys": keys,
            "lacking": {n: packed(n, value) for n, (key, value) in parts.items() if key not in self.cache},
            "work": packed("work", work),
            "count": count,
        }
        content = pickle.dumps(told, pickle.HIGHEST_PROTOCOL)
        self.jobs += 1
        job = f"job/{self.jobs}"
        self.keys.set(job)
        self.wait_for_all(f"{job}/here/{{}}", "has not come for work")
        for key in keys.values():
            self.cache.put(key, None)
        self.tell_all(content)
        self.wait_for_all(f"{job}/ready/{{}}", "has not made ready")
        reasons = [self.keys.get(f"{job}/ready/{rank}") for rank in range(1, self.size)]
        for reason in filter(None, reasons):
            self.forget(keys)
            self.keys.set(f"{job}/stop")
            raise CannotBeSent(reason)
        self.keys.set(f"{job}/go")
        return job

    def _results(self, job: str, work: Work, parts: Mapping[str, Any], count: int) -> Iterator[Any]:
        mine = work.results(range(0, count, self.size), parts, self.share)
        received = dict.fromkeys(range(1, self.size), 0)
        open_ends = set(received)
        lost = False
        try:
            for number in range(count):
                if number % self.size == 0:
                    yield next(mine)
                    continue
                kind, value = self._receive(job, number % self.size, received)
                if kind == RESULT:
                    yield value
                    continue
                open_ends.remove(number % self.size)
                raise value if kind == ERROR else RuntimeError(f"{job}: piece {number} was not done")
        except ProcessLost:
            lost = True
            raise
        finally:
            mine.close()
            if not lost:
                self.keys.set(f"{job}/stop")
            # What is under way has to arrive somewhere.
            for rank in sorted(set() if lost else open_ends):
                while self._receive(job, rank, received)[0] == RESULT:
                    pass

    def _receive(self, job: str, rank: int, received: dict[int, int]) -> tuple[int, Any]:
        key, before = f"{job}/sent/{rank}", received[rank]
        wait_until(
            lambda: int(self.keys.get(key)) > before,
            self.pulse.check,
            self.patience,
            lambda: f"{self.pulse.named(rank)} has not finished a batch for {self.patience:g} seconds",
        )
        received[rank] += 1
        with lost_if_it_fails(partial(self.pulse.named, rank)):
            kind, value = self.links.receive(rank)
        return kind, value

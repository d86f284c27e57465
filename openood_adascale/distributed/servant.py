"""A process that works for the one that directs."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import CannotBeSent, ProcessLost
from .arithmetic import take_over
from .links import Sending, lost_if_it_fails, wait_until
from .member import END, ERROR, RESULT, Member, portable
from .work import digests, unpacked

AHEAD = 3
"""Results that a process may have ready before they are asked for."""
LOST = 70
"""Exit status of a process that works for one that is gone."""


class Servant(Member):
    """A group as one of its other processes sees it."""

    directs = False

    def alarm(self, what: str) -> None:
        print(f"openood-adascale: {what}; {self.pulse.named(self.rank)} leaves", file=sys.stderr, flush=True)
        os._exit(LOST)

    def serve(self) -> None:
        """Do what process 0 asks for, until it is done; warnings are left to it. A process whose director is lost leaves
        with :data:`LOST`."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._serve_all()
            self.keys.set(f"gone/{self.rank}")
        except ProcessLost as error:
            self.alarm(str(error))
        self.pulse.stop()

    def _serve_all(self) -> None:
        while True:
            self.jobs += 1
            job = f"job/{self.jobs}"
            self._wait_forever(lambda: self.keys.has(job) or self.keys.has("end"))  # noqa: B023
            if not self.keys.has(job):
                return
            self._serve_one(job)

    def _serve_one(self, job: str) -> None:
        self.keys.set(f"{job}/here/{self.rank}")
        told = pickle.loads(self.tell_all(None))
        sys.path += [path for path in told["path"] if path not in sys.path]
        take_over(told["arithmetic"])
        reason, work, parts = "", None, {}
        try:
            for name, key in told["keys"].items():
                if name in told["lacking"]:
                    self.cache.put(key, unpacked(name, told["lacking"][name]))
                parts[name] = self.cache.use(key)
            work = unpacked("work", told["work"])
            _require_same_files(told["sources"])
        except Exception as error:
            reason = f"{self.pulse.named(self.rank)}: {error}"
        self.keys.set(f"{job}/sent/{self.rank}", "0")
        self.keys.set(f"{job}/ready/{self.rank}", reason)
        self._wait_forever(lambda: self.keys.has(f"{job}/go") or self.keys.has(f"{job}/stop"))
        if work is None or not self.keys.has(f"{job}/go"):
            self.forget(told["keys"])
            return
        self._send_results(job, work.results(range(self.rank, told["count"], self.size), parts, self.share))

    def _send_results(self, job: str, results: Iterator[Any]) -> None:
        under_way: deque[Sending] = deque()
        sent = 0

        def send(kind: int, value: Any) -> None:
            nonlocal sent
            under_way.append(self.links.send((kind, value)))
            sent += 1
            self.keys.set(f"{job}/sent/{self.rank}", str(sent))
            while len(under_way) > (AHEAD if kind == RESULT else 0):
                with lost_if_it_fails(lambda: self.pulse.named(0)):
                    under_way.popleft().wait()

        try:
            for value in results:
                if self.keys.has(f"{job}/stop"):
                    break
                send(RESULT, value)
            send(END, None)
        except ProcessLost:
            raise
        except Exception as error:
            send(ERROR, portable(error, self.pulse.named(self.rank)))

    def _wait_forever(self, found: Callable[[], bool]) -> None:
        wait_until(found, self.pulse.check, float("inf"), str)


def _require_same_files(theirs: Mapping[str, str]) -> None:
    mine = digests(theirs)
    for name, digest in theirs.items():
        if mine.get(name, digest) != digest:
            path = sys.modules[name].__file__
            raise CannotBeSent(f"{name}: {path} is not the same file as in the process that directs")

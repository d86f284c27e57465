"""Signs of life: every process gives some, and notices where another's stay away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from ..errors import ProcessLost
from .links import Keys, here

EVERY = 2.0
"""Seconds between two signs, at most."""


class Pulse:
    """Gives signs of life in a thread of its own, and looks for those of others.

    Args:
        keys: where signs are given; for this object alone.
        rank: this process's.
        others: the ranks that are watched.
        silence: seconds after which a process counts as lost.
        alarm: called, in that thread, with what is to be said once one of them is lost, or the group cannot be reached.
    """

    def __init__(
        self, keys: Keys, rank: int, others: Iterable[int], silence: float, alarm: Callable[[str], None]
    ) -> None:
        self._keys, self._rank, self._silence, self._alarm = keys, rank, silence, alarm
        now = time.monotonic()
        self._seen = dict.fromkeys(others, ("", now))
        self._names: dict[int, str] = {}
        self._lost = ""
        self._every = min(EVERY, silence / 10)
        self._done = threading.Event()
        self._keys.set(f"process/{rank}", here())
        self._beat(0)
        self._thread = threading.Thread(target=self._run, daemon=True, name="openood-adascale pulse")
        self._thread.start()

    def check(self) -> None:
        """Raise where a process is lost.

        Raises:
            ProcessLost: names it.
        """
        if self._lost:
            raise ProcessLost(self._lost)

    def stop(self) -> None:
        """Neither give nor look for signs any more."""
        self._done.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(self._every + 1)

    def named(self, rank: int) -> str:
        """A process, for people."""
        with suppress(ProcessLost):
            if rank not in self._names and self._keys.has(f"process/{rank}"):
                self._names[rank] = self._keys.get(f"process/{rank}")
        return f"process {rank} ({self._names.get(rank, 'of which nothing is known')})"

    def _beat(self, number: int) -> None:
        self._keys.set(f"pulse/{self._rank}", str(number))

    def _run(self) -> None:
        number, looked = 0, time.monotonic()
        while not self._done.wait(self._every):
            number += 1
            try:
                self._beat(number)
                self._look(looked)
            except Exception as error:  # whatever the store raises where its server is gone
                if not self._done.is_set():
                    self._say(
                        f"the group's store cannot be reached any more ({type(error).__name__}: {error})"
                    )
                return
            looked = time.monotonic()
            if self._lost:
                return

    def _look(self, before: float) -> None:
        now = time.monotonic()
        # Whoever was stopped himself has seen no signs meanwhile.
        asleep = now - before > 3 * self._every
        for rank, (sign, since) in self._seen.items():
            key = f"pulse/{rank}"
            present = self._keys.get(key) if self._keys.has(key) else ""
            if present != sign or asleep:
                self._seen[rank] = (present, now)
            elif now - since > self._silence:
                self._say(f"{self.named(rank)} has given no sign of life for {self._silence:g} seconds")

    def _say(self, what: str) -> None:
        self._lost = what
        self._alarm(what)

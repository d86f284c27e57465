"""How processes of one group reach each other: keys for what is small and waited for, torch.distributed for the rest."""

from __future__ import annotations

import datetime
import io
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from ..errors import ProcessLost

VARIABLE = "OPENOOD_ADASCALE_TIMEOUT"
SILENCE = 60.0
"""Seconds without a sign of life after which a process counts as lost, or a third of :data:`VARIABLE` if that is less."""
PATIENCE = 600.0
"""Seconds that one batch may take."""
_FOREVER = datetime.timedelta(days=30)
_SOONEST, _LATEST = 0.0005, 0.05  # seconds between two looks at a key


def patience() -> float:
    """Seconds that a process may take for one batch; ``OPENOOD_ADASCALE_TIMEOUT``.

    Raises:
        ValueError: that is no number above 0.
    """
    text = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(text) if text else PATIENCE
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 10**7:
        raise ValueError(
            f"{VARIABLE}: {text!r} is not allowed; expected seconds above 0, such as {PATIENCE:g}"
        )
    return seconds


def here() -> str:
    """This process, for people."""
    return f"{socket.gethostname()}, process {os.getpid()}"


@contextmanager
def lost_if_it_fails(whose: Callable[[], str]) -> Iterator[None]:
    """What torch.distributed raises where another process is gone, as an error that names it."""
    try:
        yield
    except RuntimeError as error:  # what it raises, and its subclasses, differ from version to version
        raise ProcessLost(
            f"{whose()} cannot be reached any more ({str(error).strip().splitlines()[0][:200]})"
        ) from error


class Keys:
    """Small values by names that all processes of the group see.

    Each raises :class:`~openood_adascale.errors.ProcessLost` where the process that keeps them is gone.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def set(self, key: str, value: str = "") -> None:
        """Have all see it."""
        with lost_if_it_fails(_the_store):
            self._store.set(key, value)
            self._store.add(_count_of(key), 1)

    def has(self, key: str) -> bool:
        """Whether someone has set it."""
        with lost_if_it_fails(_the_store):
            return bool(self._store.add(_count_of(key), 0))  # stores of torch 2.1 can be asked nothing else

    def get(self, key: str) -> str:
        """A value that is there."""
        with lost_if_it_fails(_the_store):
            found: bytes = self._store.get(key)
        return found.decode()


def _count_of(key: str) -> str:
    return f"times of {key}"


def _the_store() -> str:
    return "the group's store"


def wait_until(
    found: Callable[[], bool], watch: Callable[[], None], seconds: float, late: Callable[[], str]
) -> None:
    """Look until ``found``.

    Args:
        found: asked again and again.
        watch: called meanwhile; raises where waiting is in vain.
        seconds: for how long at most.
        late: what is to be said then.

    Raises:
        ProcessLost: it took too long.
    """
    begun, pause = time.monotonic(), _SOONEST
    while not found():
        watch()
        if time.monotonic() - begun > seconds:
            raise ProcessLost(late())
        time.sleep(pause)
        pause = min(1.5 * pause, _LATEST)


class Links:
    """Sending between the processes of a group.

    Args:
        device: where this process works: what goes to all of them goes by way of it, by nccl on GPUs and gloo on CPUs.
        seconds: that a message which was announced may take.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self._device = device
        self._seconds = datetime.timedelta(seconds=seconds)
        backend = None if device.type == "cuda" else "gloo"
        self._down: Any = dist.new_group(timeout=self._seconds, backend=backend)
        # What a process has done may lie for long before the one that directs asks for it.
        self._up: Any = dist.new_group(timeout=_FOREVER, backend="gloo")

    def broadcast(self, content: bytes | None) -> bytes:
        """What process 0 has, in all of them; the others give None."""
        size = torch.tensor([0 if content is None else len(content)], device=self._device)
        dist.broadcast(size, 0, group=self._down)
        if content is None:
            data = torch.empty(int(size), dtype=torch.uint8, device=self._device)
        else:
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(self._device)
        dist.broadcast(data, 0, group=self._down)
        return data.cpu().numpy().tobytes() if content is None else content

    def send(self, value: Any) -> Sending:
        """Begin to send ``value`` to process 0."""
        content = torch.frombuffer(bytearray(pickle.dumps(value, pickle.HIGHEST_PROTOCOL)), dtype=torch.uint8)
        return Sending([torch.tensor([len(content)]), content], self._up)

    def receive(self, rank: int) -> Any:
        """What process ``rank``, which has announced it, has sent next."""
        size = torch.empty(1, dtype=torch.int64)
        self._received(size, rank)
        content = torch.empty(int(size), dtype=torch.uint8)
        self._received(content, rank)
        return pickle.load(io.BytesIO(content.numpy().data))

    def _received(self, tensor: torch.Tensor, rank: int) -> None:
        work: Any = dist.irecv(tensor, rank, group=self._up)
        work.wait(self._seconds)


class Sending:
    """Something under way to process 0."""

    def __init__(self, tensors: list[torch.Tensor], group: Any) -> None:
        self._tensors = tensors  # which have to live until they are there
        self._works: list[Any] = [dist.isend(tensor, 0, group=group) for tensor in tensors]

    def wait(self) -> None:
        """Until it is there."""
        for work in self._works:
            work.wait()

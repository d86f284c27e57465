"""Activations of images that went through a network, kept for whatever comes later: what a store is, and one in memory."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import StoreError

SHARD = 1024
"""Images in a shard; the last one of an entry has fewer."""
DTYPES = ("float32", "float16", "bfloat16")
Shard = dict[str, Tensor]


class Entry(ABC):
    """One network's activations of one set of images, in numbered shards of named parts."""

    @property
    @abstractmethod
    def about(self) -> dict[str, Any] | None:
        """What was noted when it was begun; None before that."""

    @abstractmethod
    def begin(self, about: Mapping[str, Any]) -> None:
        """Note what it is of."""

    @abstractmethod
    def has(self, part: str, number: int, rows: int) -> bool:
        """Whether a shard of so many rows is there and whole."""

    @abstractmethod
    def read(self, part: str, number: int) -> Shard:
        """A shard that is there."""

    @abstractmethod
    def write(self, part: str, number: int, shard: Shard) -> None:
        """Put a shard in its place."""


class Store(ABC):
    """Entries by their keys.

    Args:
        dtype: what activations are kept in. ``float32`` keeps them as the network gave them; ``float16`` and
            ``bfloat16`` halve the size, and round.
    """

    def __init__(self, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise StoreError(f"store: dtype {dtype!r} is not allowed; expected one of {', '.join(DTYPES)}")
        self.dtype = dtype

    @abstractmethod
    def entry(self, key: str) -> Entry:
        """The entry of this key, begun or not."""

    @abstractmethod
    def takes(self, size: int) -> bool:
        """Whether an entry of ``size`` bytes, all told, is to be kept here."""

    @abstractmethod
    def require(self, size: int) -> None:
        """Raise :class:`~openood_adascale.errors.StoreError` where there is no room for ``size`` bytes more."""


def kept_as(dtype: str, activation: Tensor) -> Tensor:
    """An activation as it is kept in ``dtype``, one of :data:`DTYPES`, in main memory.

    Raises:
        StoreError: numbers that it cannot hold.
    """
    activation = activation.detach()
    if dtype == "float32":
        return activation.cpu()
    rounded = activation.to(getattr(torch, dtype))
    if not bool(torch.isfinite(rounded).all()):
        raise StoreError(
            f"store: {dtype} cannot hold activations up to {float(activation.abs().max()):.3g}; take bfloat16 or float32"
        )
    return rounded.cpu()


class MemoryStore(Store):
    """In this process's memory; what was not used for longest gives way.

    Args:
        limit: bytes; None takes a quarter of the machine's memory.
        dtype: see :class:`Store`.
    """

    def __init__(self, limit: int | None = None, dtype: str = "float32") -> None:
        super().__init__(dtype)
        self._entries: OrderedDict[str, _MemoryEntry] = OrderedDict()
        self._lock = threading.RLock()
        self.limit = _memory() // 4 if limit is None else limit

    def entry(self, key: str) -> Entry:
        with self._lock:
            entry = self._entries.setdefault(key, _MemoryEntry(self))
            self._entries.move_to_end(key)
            return entry

    def takes(self, size: int) -> bool:
        return size <= self.limit

    def require(self, size: int) -> None:
        """There always is: others give way."""

    @property
    def size(self) -> int:
        """Bytes in use."""
        return sum(entry.size for entry in list(self._entries.values()))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()

    def make_room(self, spared: _MemoryEntry) -> None:
        """Have entries other than ``spared`` give way until the limit is kept."""
        with self._lock:
            for key, entry in list(self._entries.items()):
                if self.size <= self.limit:
                    return
                if entry is not spared:
                    del self._entries[key]


class _MemoryEntry(Entry):
    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._about: dict[str, Any] | None = None
        self._shards: dict[tuple[str, int], Shard] = {}
        self.size = 0

    @property
    def about(self) -> dict[str, Any] | None:
        return self._about

    def begin(self, about: Mapping[str, Any]) -> None:
        self._about = dict(about)

    def has(self, part: str, number: int, rows: int) -> bool:
        return (part, number) in self._shards

    def read(self, part: str, number: int) -> Shard:
        return self._shards[part, number]

    def write(self, part: str, number: int, shard: Shard) -> None:
        self._shards[part, number] = {name: tensor.clone() for name, tensor in shard.items()}
        self.size += sum(tensor.nbytes for tensor in shard.values())
        self._store.make_room(self)


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such question on this platform
        return 8 * 2**30

"""Activations of images that went through a network, kept for whatever comes later: what a store is, and one in memory."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import StoreError

MOST = 2 * 2**30
"""Bytes that are kept in memory, at most, where nobody says otherwise."""
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

    @abstractmethod
    def drop(self, part: str, number: int) -> None:
        """Take a shard away, if it is there."""


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
        limit: bytes; None takes a quarter of the memory that the process may use, and :data:`MOST` at most.
        dtype: see :class:`Store`.
    """

    def __init__(self, limit: int | None = None, dtype: str = "float32") -> None:
        super().__init__(dtype)
        self._entries: dict[str, _MemoryEntry] = {}
        self._parts: OrderedDict[tuple[_MemoryEntry, str], None] = OrderedDict()  # the latest last
        self._lock = threading.RLock()
        self.limit = min(_memory() // 4, MOST) if limit is None else limit

    def entry(self, key: str) -> Entry:
        with self._lock:
            return self._entries.setdefault(key, _MemoryEntry(self))

    def takes(self, size: int) -> bool:
        return size <= self.limit

    def require(self, size: int) -> None:
        """There always is: others give way."""

    @property
    def size(self) -> int:
        """Bytes in use."""
        with self._lock:
            return sum(entry.sizes[part] for entry, part in self._parts)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._parts.clear()

    def used(self, entry: _MemoryEntry, part: str) -> None:
        """Note that a part of an entry was used, and have others give way until the limit is kept."""
        with self._lock:
            self._parts[entry, part] = None
            self._parts.move_to_end((entry, part))
            while len(self._parts) > 1 and self.size > self.limit:
                (oldest, name), _ = self._parts.popitem(last=False)
                oldest.forget(name)


class _MemoryEntry(Entry):
    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._about: dict[str, Any] | None = None
        self._shards: dict[tuple[str, int], Shard] = {}
        self.sizes: dict[str, int] = defaultdict(int)
        """Bytes of each part."""

    @property
    def about(self) -> dict[str, Any] | None:
        return self._about

    def begin(self, about: Mapping[str, Any]) -> None:
        self._about = dict(about)

    def has(self, part: str, number: int, rows: int) -> bool:
        found = (part, number) in self._shards
        if found:
            self._store.used(self, part)
        return found

    def read(self, part: str, number: int) -> Shard:
        try:
            return self._shards[part, number]
        except KeyError:
            raise StoreError(
                "store: activations in memory gave way to others while they were in use; keep them on disk "
                "(OPENOOD_ADASCALE_STORE=DIR)"
            ) from None

    def write(self, part: str, number: int, shard: Shard) -> None:
        self.drop(part, number)
        self._shards[part, number] = {name: tensor.clone() for name, tensor in shard.items()}
        self.sizes[part] += _bytes(shard)
        self._store.used(self, part)

    def drop(self, part: str, number: int) -> None:
        if (shard := self._shards.pop((part, number), None)) is not None:
            self.sizes[part] -= _bytes(shard)

    def forget(self, part: str) -> None:
        """Take a part away."""
        for name, number in list(self._shards):
            if name == part:
                self.drop(name, number)


def _bytes(shard: Shard) -> int:
    return sum(tensor.nbytes for tensor in shard.values())


def _memory() -> int:
    """Bytes that this process may use: the machine's, or its container's."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such question on this platform
        found = 8 * 2**30
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" where there is no limit
            found = min(found, int(Path(path).read_text()))
    return found

"""What can be done batch by batch, on whichever process."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import CannotBeSent

REMEMBERED = 32
"""How many large parts (networks, data sets) a process keeps for later work."""


class Work(ABC):
    """Numbered pieces, each of which gives a result that pickle can take and that does not depend on who does it.

    What is large and the same in much work, a network or a data set, is not to be an attribute but one of :meth:`parts`.
    """

    @abstractmethod
    def parts(self) -> Mapping[str, tuple[str, Any]]:
        """By name, what the work is done with: what it is found by, and itself. Equal keys mean equal content; where the
        content cannot be told, the key is to be one that never comes again."""

    def uses(self) -> Iterable[Any]:
        """Objects whose classes have to be the same everywhere; :meth:`parts` without this."""
        return [value for _, value in self.parts().values()]

    @abstractmethod
    def results(
        self, numbers: Sequence[int], parts: Mapping[str, Any], share: Share
    ) -> Generator[Any, None, None]:
        """The results of these pieces, one after another.

        Args:
            numbers: of the pieces, ascending.
            parts: by name.
            share: which part of the machine this process is to use.
        """


class Share:
    """Which part of a machine a process is to use.

    Args:
        place: its number among the machine's processes, from 0 on.
        of: how many they are.
    """

    def __init__(self, place: int = 0, of: int = 1) -> None:
        self.place, self.of = place, of

    def count(self, total: int) -> int:
        """Its part of ``total`` helpers that the machine is to have."""
        return total // self.of + (self.place < total % self.of)


def sources(objects: Iterable[Any]) -> set[str]:
    """The modules that define these objects' classes."""
    kinds = [one if isinstance(one, type) or callable(one) else type(one) for one in objects]
    return {base.__module__ for kind in kinds for base in getattr(kind, "__mro__", (kind,))}


def digests(modules: Iterable[str]) -> dict[str, str]:
    """Digests of the files of modules that are loaded, by their names; installed ones, which change with their versions
    only, are left out."""
    found = {}
    for module in modules:
        path = getattr(sys.modules.get(module), "__file__", None) or ""
        if path and "site-packages" not in path and os.path.isfile(path):
            found[module] = hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
    return found


def packed(name: str, value: Any) -> bytes:
    """``value`` as bytes.

    Raises:
        CannotBeSent: it cannot be pickled.
    """
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
    except Exception as error:  # of what a class does when it is pickled
        raise CannotBeSent(
            f"{name}: {_kind(value)} cannot be sent to the other processes: {type(error).__name__}: {error}; expected one "
            "that pickle can take (without lambdas, local classes, open files), or a run with one process"
        ) from error
    return buffer.getvalue()


def unpacked(name: str, content: bytes) -> Any:
    """What :func:`packed` was given; what was on a GPU is on this process's.

    Raises:
        CannotBeSent: this process lacks what is needed for it.
    """
    there = {f"cuda:{number}": "cuda" for number in range(64)} if torch.cuda.is_available() else None
    try:
        return torch.load(io.BytesIO(content), map_location=there, weights_only=False)
    except Exception as error:  # of what a class does when it is made anew
        raise CannotBeSent(
            f"{name}: it cannot be made anew in the other processes: {type(error).__name__}: {error}; expected classes and "
            "functions of modules that they can import (not of a script or a notebook), or a run with one process"
        ) from error


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


class Cache:
    """The latest parts, by their keys; every process that is told of the same keys keeps the same ones."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def put(self, key: str, value: Any) -> None:
        """Keep it, as the latest."""
        self._kept[key] = value
        self.use(key)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)

    def use(self, key: str) -> Any:
        """It, which is the latest now."""
        self._kept.move_to_end(key)
        return self._kept[key]

    def drop(self, key: str) -> None:
        """Forget it."""
        self._kept.pop(key, None)

"""The exceptions of its own that the package raises to a caller. All but :class:`ProcessLost` are ValueErrors: an input, a
setting or a file that cannot be used."""

from __future__ import annotations

import ast
import re
import reprlib
from collections.abc import Mapping
from typing import Any

_MOST = 1000  # of a value's parts, and characters, that an error shows
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3


def shown(value: Any) -> str:
    """``repr`` of any value, as far as a person would read it: a few lines of YAML can stand for a billion words."""
    try:
        text = repr(value) if _few(value) else _SHORT.repr(value)
    except Exception:  # an int of more digits than Python shows, or whatever repr it has
        text = object.__repr__(value)
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"


def _few(value: Any) -> bool:
    waiting, count = [value], 0
    while waiting and count + len(waiting) <= _MOST:
        part = waiting.pop()
        count += 1
        if isinstance(part, Mapping):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            waiting += part
    return not waiting


class SettingError(ValueError):
    """A setting that is unknown or out of range; names it, its value and what is allowed."""

    def __init__(self, name: str, value: Any, allowed: str) -> None:
        super().__init__(f"{name}: {shown(value)} is not allowed; expected {allowed}")
        self.name, self.value, self.allowed = name, value, allowed

    def __reduce__(self) -> tuple[Any, ...]:  # errors cross process borders
        return SettingError, (self.name, self.value, self.allowed)

    def within(self, place: str) -> SettingError:
        """The same, of a setting in a file or a section."""
        return SettingError(f"{place}: {self.name}", self.value, self.allowed)


class NotFinite(ValueError):
    """NaN or infinity in images or activations; says of which."""

    def __init__(self, what: str, rows: list[int], names: list[str] | None = None) -> None:
        named = names or [str(row) for row in rows]
        shown = ", ".join(named[:10]) + (", …" if len(named) > 10 else "")
        places = "" if names else " (counted from 0)"
        number = "" if names else "number "
        super().__init__(f"{what}: NaN or infinity for {len(rows)} image(s), {number}{shown}{places}")
        self.what, self.rows, self.names = what, rows, names
        """What is not finite; the images' places in the batch or the loader; and, where the loader tells them, files."""

    def __reduce__(self) -> tuple[Any, ...]:
        return NotFinite, (self.what, self.rows, self.names)

    def shifted(self, offset: int) -> NotFinite:
        """The same, counted from ``offset`` images earlier."""
        return NotFinite(self.what, [row + offset for row in self.rows], self.names)

    def located(self, offset: int, names: list[str]) -> NotFinite:
        """The same for a batch that begins at ``offset`` in its loader and has images of these names, if any."""
        files = [names[row] for row in self.rows] if names else None
        return NotFinite(self.what, [row + offset for row in self.rows], files)


class HeadMismatch(ValueError):
    """The network's logits are not W a + b of the layer that seemed to be its linear head."""


class ResultError(ValueError):
    """A result file or a request that cannot be used; the message says which, where and what is expected."""


class StoreError(ValueError):
    """A store of activations that cannot be used, or has no room; the message says which and what to do."""


class Changed(StoreError):
    """A network or images that were changed while they were read; nothing of that pass is kept."""


class DetectorFileError(ValueError):
    """A detector's file that cannot be read or written, or is of something else; the message says which and what is
    expected."""


class ImageError(ValueError):
    """An image file that cannot be read; says which and why."""

    def __init__(self, path: str, why: str | None = None) -> None:
        if why is None:
            path, why = _as_torch_hands_it_on(path)
        super().__init__(f"{path!r}: {why}")
        self.path, self.why = path, why
        """The file, and what is the matter with it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageError, (self.path, self.why)


def _as_torch_hands_it_on(text: str) -> tuple[str, str]:
    """Path and reason out of the one text, a worker's whole traceback, of which torch's DataLoader makes an error anew
    in the process that reads its batches."""
    found = re.search(
        r"^\S*ImageError: ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"): (.*)", text, re.MULTILINE | re.DOTALL
    )
    return (str(ast.literal_eval(found[1])), found[2].strip()) if found else ("", text)


class CannotBeSent(ValueError):
    """A network, a data set or a method that other processes cannot be given, or a process that is not like the others;
    says which and why."""


class ProcessLost(RuntimeError):
    """A process of a group is gone, or does not answer; names it."""


class Unavailable(ValueError):
    """Evidence was asked for something that the plan it was made for does not have."""

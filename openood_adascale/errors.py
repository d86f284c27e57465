"""Exceptions of the package. Each names the setting or input, its value and the allowed values."""

from __future__ import annotations

import ast
import re
import reprlib
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = _SHORT.maxdict = 12
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 500


def shown(value: Any) -> str:
    """Return ``repr(value)``, shortened to a readable length."""
    try:
        text = _SHORT.repr(value)
    except Exception:  # an int with more digits than Python prints, or a broken __repr__
        text = object.__repr__(value)
    return text if len(text) <= 1000 else f"{text[:999]}…"


def key_text(key: Any) -> str:
    """Return the text by which an error names the key of a mapping."""
    return str(key) if isinstance(key, str) else shown(key)


class SettingError(ValueError):
    """An unknown or out-of-range setting.

    Args:
        name: Name of the setting.
        value: Value that was given.
        allowed: Description of the allowed values.
    """

    def __init__(self, name: str, value: Any, allowed: str) -> None:
        super().__init__(f"{name}: {shown(value)} is not allowed; expected {allowed}")
        self.name, self.value, self.allowed = name, value, allowed

    def __reduce__(self) -> tuple[Any, ...]:  # errors cross process borders
        return SettingError, (self.name, self.value, self.allowed)

    def within(self, place: str) -> SettingError:
        """Return the same error for a setting inside the file or section ``place``."""
        return SettingError(f"{place}: {self.name}", self.value, self.allowed)


class NotFittedError(RuntimeError):
    """A detector that has not been fitted for its present network and settings."""


class NotFiniteError(ValueError):
    """NaN or infinity in images or activations.

    Args:
        what: Name of the tensor.
        rows: Positions of the images in the batch or the loader.
        names: File names of these images, if known.
    """

    def __init__(self, what: str, rows: list[int], names: list[str] | None = None) -> None:
        listed = names or [str(row) for row in rows]
        text = ", ".join(listed[:10]) + (", …" if len(listed) > 10 else "")
        places = text if names else f"number {text} (counted from 0)"
        super().__init__(f"{what}: NaN or infinity for {len(rows)} image(s), {places}")
        self.what, self.rows, self.names = what, rows, names

    def __reduce__(self) -> tuple[Any, ...]:
        return NotFiniteError, (self.what, self.rows, self.names)

    def shifted(self, offset: int) -> NotFiniteError:
        """Return the same error with rows counted from ``offset`` images earlier."""
        return NotFiniteError(self.what, [row + offset for row in self.rows], self.names)

    def located(self, places: list[int], names: list[str]) -> NotFiniteError:
        """Return the same error for a batch whose images have these places in the dataset and these files."""
        files = [names[row] for row in self.rows] if names else None
        return NotFiniteError(self.what, [places[row] for row in self.rows], files)


class HeadMismatchError(ValueError):
    """Logits that are not W a + b of the layer found as the linear head."""


class MissingFeatureError(ValueError):
    """A feature statistic that the feature request did not include."""


class CacheError(ValueError):
    """A feature cache that cannot be read or written."""


class ResultError(ValueError):
    """A result file that cannot be used; the message names the file and the expected content."""


class DetectorFileError(ValueError):
    """A saved detector that cannot be read, written or used with this network."""


class ImageError(ValueError):
    """An image file that cannot be read.

    Args:
        path: The file.
        why: The reason.
    """

    def __init__(self, path: str, why: str | None = None) -> None:
        if why is None:
            path, why = _from_worker_traceback(path)
        super().__init__(f"{path!r}: {why}")
        self.path, self.why = path, why

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageError, (self.path, self.why)


def _from_worker_traceback(text: str) -> tuple[str, str]:
    """Return path and reason from the text that torch's DataLoader rebuilds a worker's exception from."""
    found = re.search(
        r"^\S*ImageError: ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"): (.*)", text, re.MULTILINE | re.DOTALL
    )
    return (str(ast.literal_eval(found[1])), found[2].strip()) if found else ("", text)

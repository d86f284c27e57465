"""Text from files and paths, made fit to be shown."""

from __future__ import annotations

import math
import unicodedata

_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


def shown(text: str) -> str:
    """The text with what no page or terminal should get (control characters, invalid UTF-8) as escapes."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _UNPRINTABLE else char
        for char in text
    )


def shortened(text: str, most: int = 80) -> str:
    """A cell or list from a file, in a message or picture."""
    return text if len(text) <= most else text[: most - 1] + "…"


def is_name(value: object) -> bool:
    """Whether this can name an OOD set: text, not blank, nothing in it that :func:`shown` would escape."""
    return isinstance(value, str) and bool(value.strip()) and value == shown(value)


def percentage(mean: float, std: float = math.nan) -> str:
    """``84.42``, ``84.42 ± 0.33``, or a dash where nothing is known."""
    if math.isnan(mean):
        return "–"
    return f"{mean:.2f}" + ("" if math.isnan(std) else f" ± {std:.2f}")

"""What all pictures share; the one place that imports Matplotlib. No pyplot, no global state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..text import shortened

try:
    import matplotlib
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise ImportError(
        "pictures need Matplotlib: pip install 'openood-adascale[plots]'", name="matplotlib"
    ) from error

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, but for its yellow, which is faint on white."""
OTHER = "#b0b0b0"
INK, MUTED, GRID = "#222222", "#6e6e6e", "#e4e4e4"
_LONGEST_NAME = 40
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#bdbdbd",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
}


def styled() -> AbstractContextManager[None]:
    """Matplotlib's settings for as long as a picture is made."""
    return matplotlib.rc_context(_SETTINGS)


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from"
        )  # a name in an alphabet that the font lacks
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def literal(name: str) -> str:
    """A name from a file: Matplotlib would take $…$ for mathematics, and a long one leaves no room to draw."""
    return shortened(name, _LONGEST_NAME).replace("$", r"\$")


def figure_of(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each method, the first ones in ``labels`` distinct, the rest grey."""
    return {label: PALETTE[i] if i < len(PALETTE) else OTHER for i, label in enumerate(labels)}

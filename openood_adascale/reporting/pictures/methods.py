"""All methods side by side."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import GRID, INK, MUTED, OTHER, figure_of, literal, styled


def methods(
    mean: pd.DataFrame, std: pd.DataFrame, colour: Mapping[str, str], published: Collection[str] = ()
) -> Figure:
    """All methods side by side.

    Args:
        mean, std: percent; rows are methods, best first, columns (side, metric), e.g. ``("near", "AUROC")``;
            NaN where unknown.
        colour: of each method.
        published: those that were not run, whose figures are published ones: hollow, and their names in italics.
    """
    with styled():
        columns: list[Any] = [column for column in mean.columns if mean[column].notna().any()]
        figure = figure_of(2.1 + 2.0 * len(columns), 1.0 + 0.27 * len(mean))
        axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axis, (side, metric) in zip(axes, columns, strict=True):
            axis.set_title(
                f"{side.capitalize()}-OOD {metric} {'↓' if _lower_is_better(metric) else '↑'}",
                fontsize=9.5,
                loc="left",
            )
            tints = [colour.get(label, OTHER) for label in mean.index]
            measured = np.array([label not in published for label in mean.index])
            _dots(axis, mean[side, metric], std[side, metric], tints, _lower_is_better(metric), measured)
        axes[0].set_yticks(range(len(mean)), [literal(label) for label in mean.index], color=INK)
        for label, text in zip(mean.index, axes[0].get_yticklabels(), strict=True):
            if label in published:
                text.set(style="italic", color=MUTED)
        axes[0].set_ylim(len(mean) - 0.4, -0.6)
        figure.supxlabel("percent", fontsize=8, color=MUTED)
        return figure


def _lower_is_better(metric: str) -> bool:
    return metric.startswith("FPR")


def _dots(
    axis: Axes, values: pd.Series, spread: pd.Series, tints: Sequence[str], lower: bool, measured: np.ndarray
) -> None:
    """A metric of all methods, each in a row."""
    rows = np.arange(len(values))
    own = values[measured]
    best = (own.min() if lower else own.max()) if len(own) > 1 else None
    axis.hlines(rows, 0, 1, transform=axis.get_yaxis_transform(), color=GRID, lw=0.8)
    axis.errorbar(values, rows, xerr=spread.fillna(0), fmt="none", ecolor="#9a9a9a", elinewidth=1)
    faces = [tint if solid else "white" for tint, solid in zip(tints, measured, strict=True)]
    axis.scatter(values, rows, s=42, facecolors=faces, edgecolors=tints, zorder=3)
    # All values in one column at the right: never over a dot, and easy to read down.
    write = functools.partial(
        axis.text, 1.03, transform=axis.get_yaxis_transform(), va="center", fontsize=8.5
    )
    for row, value in enumerate(values):
        if not np.isnan(value):
            is_best = best is not None and bool(measured[row]) and round(value, 2) == round(best, 2)
            look: dict[str, Any] = {} if measured[row] else {"style": "italic", "color": MUTED}
            write(row, f"{value:.1f}", weight="bold" if is_best else "normal", **look)
    low, high = (values - spread.fillna(0)).min(), (values + spread.fillna(0)).max()
    margin = max(0.08 * (high - low), 0.5)
    axis.set_xlim(low - margin, high + margin)
    axis.tick_params(length=0)
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=4)

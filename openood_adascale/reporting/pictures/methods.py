"""All methods side by side."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import GRID, INK, MUTED, figure_of, literal, styled


def methods(mean: pd.DataFrame, std: pd.DataFrame, colour: Mapping[str, str]) -> Figure:
    """All methods side by side.

    Args:
        mean, std: percent; rows are methods, best first, columns (side, metric), e.g. ``("near", "AUROC")``;
            NaN where unknown.
        colour: of each method.
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
            tints = [colour[label] for label in mean.index]
            _dots(axis, mean[side, metric], std[side, metric], tints, _lower_is_better(metric))
        axes[0].set_yticks(range(len(mean)), [literal(label) for label in mean.index], color=INK)
        axes[0].set_ylim(len(mean) - 0.4, -0.6)
        figure.supxlabel("percent", fontsize=8, color=MUTED)
        return figure


def _lower_is_better(metric: str) -> bool:
    return metric.startswith("FPR")


def _dots(axis: Axes, values: pd.Series, spread: pd.Series, tints: Sequence[str], lower: bool) -> None:
    """A metric of all methods, each in a row."""
    rows = np.arange(len(values))
    best = (values.min() if lower else values.max()) if len(values) > 1 else None
    axis.hlines(rows, 0, 1, transform=axis.get_yaxis_transform(), color=GRID, lw=0.8)
    axis.errorbar(values, rows, xerr=spread.fillna(0), fmt="none", ecolor="#9a9a9a", elinewidth=1)
    axis.scatter(values, rows, s=42, color=tints, zorder=3)
    # All values in one column at the right: never over a dot, and easy to read down.
    write = functools.partial(
        axis.text, 1.03, transform=axis.get_yaxis_transform(), va="center", fontsize=8.5
    )
    for row, value in enumerate(values):
        if not np.isnan(value):
            is_best = best is not None and round(value, 2) == round(best, 2)
            write(row, f"{value:.1f}", weight="bold" if is_best else "normal")
    low, high = (values - spread.fillna(0)).min(), (values + spread.fillna(0)).max()
    margin = max(0.08 * (high - low), 0.5)
    axis.set_xlim(low - margin, high + margin)
    axis.tick_params(length=0)
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=4)

"""A hyperparameter search over the percentiles."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .style import MUTED, figure_of, styled


def search_map(auroc: pd.DataFrame) -> Figure:
    """The search's AUROC over the percentiles, like the paper's Figure 5.

    Args:
        auroc: percent; rows p_min, columns p_max (percentiles), NaN where no candidate was tried.
    """
    with styled():
        values = auroc.to_numpy(dtype=float)
        figure = figure_of(1.7 + 0.52 * values.shape[1], 0.9 + 0.4 * values.shape[0])
        axis = figure.subplots()
        image = axis.imshow(np.ma.masked_invalid(values), cmap="cividis", origin="lower", aspect="auto")
        low, high = np.nanmin(values), np.nanmax(values)
        best = np.unravel_index(np.nanargmax(values), values.shape)
        centred = functools.partial(axis.text, ha="center", va="center", fontsize=8)
        for row, column in np.argwhere(~np.isnan(values)):
            value, is_best = values[row, column], (row, column) == best
            ink = "white" if value < low + 0.5 * (high - low) else "black"
            centred(column, row, f"{value:.1f}", color=ink, weight="bold" if is_best else "normal")
            frame = Rectangle((column - 0.44, row - 0.44), 0.88, 0.88, fill=False, ec=ink, lw=1, ls=":")
            if is_best:
                frame.set(ec="#D55E00", lw=2.4, ls="-", zorder=3)
            if is_best or auroc.index[row] == auroc.columns[column]:
                axis.add_patch(frame)
        axis.set_xticks(range(values.shape[1]), [f"{p:g}" for p in auroc.columns])
        axis.set_yticks(range(values.shape[0]), [f"{p:g}" for p in auroc.index])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set(xlabel="p_max", ylabel="p_min")
        if len(values) > 2 and np.isnan(values[-1, 0]):  # p_min > p_max is empty: room for a legend
            legend = "orange frame: best\ndotted: p_min = p_max, fixed percentile"
            axis.text(0.01, 0.99, legend, transform=axis.transAxes, va="top", fontsize=7.5, color=MUTED)
        bar = figure.colorbar(image, ax=axis, shrink=0.8, pad=0.02, label="AUROC (%)")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        return figure

"""Two methods on the same images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import GRID, INK, MUTED, OTHER, figure_of, literal, styled

_MOST_POINTS = 4000
_ACROSS = 4
_EDGE = 5  # percent: what ranks lower is refused at the threshold that keeps 95 % of the known images


def agreement(
    ranks: Mapping[str, tuple[np.ndarray, np.ndarray]], labels: tuple[str, str], tint: str
) -> Figure:
    """Each image by its rank under two methods, a panel per OOD set, the known images behind it.

    Args:
        ranks: (N,) by each method, in percent, by set; ``id`` are the known images.
        labels: of the two methods.
        tint: of the OOD images.
    """
    with styled():
        sets = [key for key in ranks if key != "id"]
        down = -(-len(sets) // _ACROSS)
        figure = figure_of(2.75 * max(min(len(sets), _ACROSS), 2), 2.75 * down + 0.3)
        grid = figure.add_gridspec(down, max(min(len(sets), _ACROSS), 2))
        for index, key in enumerate(sets):
            axis = figure.add_subplot(grid[divmod(index, _ACROSS)])
            axis.axvspan(0, _EDGE, color=GRID, lw=0)
            axis.axhspan(0, _EDGE, color=GRID, lw=0)
            axis.plot([0, 100], [0, 100], color=MUTED, lw=0.7, ls=(0, (3, 2)), zorder=1)
            if "id" in ranks:
                _points(axis, ranks["id"], OTHER, 5)
            _points(axis, ranks[key], tint, 8)
            axis.set_title(literal(key), fontsize=9.5, loc="left", weight="bold")
            axis.set(xlim=(-2, 102), ylim=(-2, 102), aspect="equal", xticks=[0, 50, 100], yticks=[0, 50, 100])
            if index == 0:
                axis.set_ylabel(f"rank by {literal(labels[1])} (%)", color=INK)
                axis.set_xlabel(f"rank by {literal(labels[0])} (%)", color=INK)
        return figure


def _points(axis: Axes, ranks: tuple[np.ndarray, np.ndarray], colour: str, size: float) -> None:
    step = -(-len(ranks[0]) // _MOST_POINTS)  # every so many-th image: more would be a blot
    axis.scatter(ranks[0][::step], ranks[1][::step], s=size, color=colour, alpha=0.6, lw=0, zorder=2)

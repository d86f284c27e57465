"""The report's pictures, as Matplotlib figures: no pyplot, no global state, colour-blind safe."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .scores import Scores, fpr95_auroc, roc

# Okabe and Ito's palette, but for its yellow, which is faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
OTHER = "#b0b0b0"
_ID, _NEAR, _FAR = "#8c8c8c", "#0072B2", "#D55E00"
_LONG_TAIL = 30  # largest over lower-quartile magnitude, from which on a linear axis shows but one bar
_INK, _MUTED, _GRID = "#222222", "#6e6e6e", "#e4e4e4"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": "#bdbdbd",
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "grid.color": _GRID,
}


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def _literal(name: str) -> str:
    """A name from a file, of which Matplotlib would take $…$ for mathematics."""
    return name.replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each method, the first ones in ``labels`` distinct, the rest grey."""
    return {label: PALETTE[i] if i < len(PALETTE) else OTHER for i, label in enumerate(labels)}


def methods(mean: pd.DataFrame, std: pd.DataFrame, colour: Mapping[str, str]) -> Figure:
    """All methods side by side.

    Args:
        mean, std: percent; rows are methods, best first, columns (side, metric), e.g. ``("near", "AUROC")``;
            NaN where unknown.
        colour: of each method.
    """
    with matplotlib.rc_context(_STYLE):
        columns: list[Any] = [column for column in mean.columns if mean[column].notna().any()]
        figure = _figure(2.1 + 2.0 * len(columns), 1.0 + 0.27 * len(mean))
        axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        rows = np.arange(len(mean))
        for axis, (side, metric) in zip(axes, columns, strict=True):
            values, spread = mean[side, metric], std[side, metric]
            lower = metric.startswith("FPR")
            best = (values.min() if lower else values.max()) if len(values) > 1 else None
            axis.hlines(rows, 0, 1, transform=axis.get_yaxis_transform(), color=_GRID, lw=0.8)
            axis.errorbar(values, rows, xerr=spread.fillna(0), fmt="none", ecolor="#9a9a9a", elinewidth=1)
            axis.scatter(values, rows, s=42, color=[colour[label] for label in mean.index], zorder=3)
            for row, value in zip(rows, values, strict=True):
                if not np.isnan(value):
                    # All values in one column at the right: never over a dot, and easy to read down.
                    weight = "bold" if best is not None and round(value, 2) == round(best, 2) else "normal"
                    place: dict[str, Any] = {
                        "transform": axis.get_yaxis_transform(),
                        "va": "center",
                        "fontsize": 8.5,
                    }
                    axis.text(1.03, row, f"{value:.1f}", weight=weight, **place)
            axis.set_title(
                f"{side.capitalize()}-OOD {metric} {'↓' if lower else '↑'}", fontsize=9.5, loc="left"
            )
            low, high = (values - spread.fillna(0)).min(), (values + spread.fillna(0)).max()
            margin = max(0.08 * (high - low), 0.5)
            axis.set_xlim(low - margin, high + margin)
            axis.tick_params(length=0)
            axis.spines["left"].set_visible(False)
            axis.locator_params(axis="x", nbins=4)
        axes[0].set_yticks(rows, [_literal(label) for label in mean.index], color=_INK)
        axes[0].set_ylim(len(mean) - 0.4, -0.6)
        figure.supxlabel("percent", fontsize=8, color=_MUTED)
        return figure


def _panels(
    near: Sequence[str], far: Sequence[str], height: float
) -> tuple[Figure, Iterator[tuple[str, str, Axes]]]:
    """One panel per OOD set: near sets in the first row(s), far sets below, four to a row at most."""
    across = min(max(len(near), len(far), 2), 4)
    places = [
        (side, name, (row0 + i // across, i % across))
        for side, names, row0 in (("near", near, 0), ("far", far, -(-len(near) // across)))
        for i, name in enumerate(names)
    ]
    down = -(-len(near) // across) + -(-len(far) // across)
    figure = _figure(2.75 * across, height * down + 0.3)
    grid = figure.add_gridspec(down, across)
    return figure, ((side, name, figure.add_subplot(grid[place])) for side, name, place in places)


def distributions(scores: Scores) -> Figure:
    """Densities of the ID and the OOD scores per OOD set, with the threshold behind FPR@95."""
    with matplotlib.rc_context(_STYLE):
        figure, panels = _panels(list(scores.near), list(scores.far), 1.9)
        groups = [scores.id, *scores.near.values(), *scores.far.values()]
        ends = np.array([np.quantile(values, (0.003, 0.997)) for values in groups])
        low, high = ends[:, 0].min(), ends[:, 1].max()
        bins = np.linspace(low, high if high > low else low + 1, 61)
        # Scores such as variant A's, with its exp(r), can span orders of magnitude: then compress the axis.
        unit = float(np.quantile(np.abs(np.concatenate(groups)), 0.25))
        compress = unit > 0 and max(abs(low), abs(high)) > max(
            _LONG_TAIL * unit, 1
        )  # probabilities stay linear
        if compress:
            first, last = np.arcsinh(bins[[0, -1]] / unit)
            bins = unit * np.sinh(np.linspace(first, last, 61))
        for index, (side, name, axis) in enumerate(panels):
            outside = getattr(scores, side)[name]
            fpr, auroc = fpr95_auroc(scores.id, outside)
            if compress:
                axis.set_xscale("asinh", linear_width=unit)
            axis.set_xlim(bins[0], bins[-1])  # first, so that nothing has to find limits of its own
            peak = 0.0
            for values, tint in ((scores.id, _ID), (outside, _NEAR if side == "near" else _FAR)):
                # Shares, not densities: scores can span more than float64 can divide by.
                share = np.histogram(values, bins)[0] / len(values)
                axis.stairs(share, bins, fill=True, color=tint, alpha=0.35, lw=0)
                axis.stairs(share, bins, color=tint, lw=1.3)
                peak = max(peak, float(share.max()))
            threshold = np.quantile(outside, 0.95)
            axis.axvline(threshold, ymax=0.93, color=_INK, lw=0.9, ls=(0, (3, 2)))
            axis.set_title(_literal(name), fontsize=9.5, loc="left", weight="bold", pad=16)
            axis.text(0, 1.03, f"AUROC {auroc:.1f}   FPR@95 {fpr:.1f}", transform=axis.transAxes, fontsize=8)
            axis.set_ylim(0, 1.18 * peak)
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
            if not compress:
                axis.locator_params(axis="x", nbins=4)
            if index == 0:
                place: dict[str, Any] = {"transform": axis.transAxes, "fontsize": 8, "va": "top"}
                axis.text(0.99, 0.99, "ID", color=_MUTED, ha="right", weight="bold", **place)
                axis.text(0.01, 0.99, "OOD", color=_NEAR if side == "near" else _FAR, weight="bold", **place)
        figure.supxlabel(
            "score: larger = more in-distribution; dashed: 95 % of the OOD images are left of it", fontsize=8
        )
        return figure


def rocs(scores: Mapping[str, Scores], colour: Mapping[str, str]) -> Figure:
    """ROC curves of all methods, one panel per OOD set; the legend is ordered by AUROC (percent)."""
    with matplotlib.rc_context(_STYLE):
        near, far = (
            list(dict.fromkeys(name for saved in scores.values() for name in getattr(saved, side)))
            for side in ("near", "far")
        )
        figure, panels = _panels(near, far, 2.65)
        for index, (side, name, axis) in enumerate(panels):
            curves: list[tuple[float, str, Any]] = []
            for label, saved in scores.items():
                if name in getattr(saved, side):
                    outside = getattr(saved, side)[name]
                    curves.append((fpr95_auroc(saved.id, outside)[1], label, roc(saved.id, outside)))
            axis.axhline(95, color=_MUTED, lw=0.8, ls=(0, (3, 2)))
            for rank, (auroc, label, (fpr, tpr)) in enumerate(sorted(curves, key=lambda curve: -curve[0])):
                grey = colour[label] == OTHER
                axis.plot(
                    100 * fpr,
                    100 * tpr,
                    color=colour[label],
                    lw=0.8 if grey else 1.5,
                    zorder=2 if grey else 4 - rank / 100,
                    label=None if grey else f"{auroc:.1f}  {_literal(label)}",
                )
            axis.set(xlim=(0, 100), ylim=(0, 101), aspect="equal")
            axis.set_xticks([0, 50, 100])
            axis.set_yticks([0, 50, 95])
            axis.set_title(_literal(name), fontsize=9.5, loc="left", weight="bold")
            axis.legend(loc="lower right", fontsize=7, frameon=False, handlelength=1.2, labelspacing=0.25)
            if index == 0:
                axis.set_ylabel("OOD images caught (%)")
        figure.supxlabel(
            "ID images wrongly flagged (%); FPR@95 is read where a curve crosses the dashed line", fontsize=8
        )
        return figure


def search_map(auroc: pd.DataFrame) -> Figure:
    """The search's AUROC over the percentiles, like the paper's Figure 5.

    Args:
        auroc: percent; rows p_min, columns p_max (percentiles), NaN where no candidate was tried.
    """
    with matplotlib.rc_context(_STYLE):
        values = auroc.to_numpy(dtype=float)
        figure = _figure(1.7 + 0.52 * values.shape[1], 0.9 + 0.4 * values.shape[0])
        axis = figure.subplots()
        image = axis.imshow(np.ma.masked_invalid(values), cmap="cividis", origin="lower", aspect="auto")
        low, high = np.nanmin(values), np.nanmax(values)
        best = np.unravel_index(np.nanargmax(values), values.shape)
        for row, column in np.argwhere(~np.isnan(values)):
            value, is_best = values[row, column], (row, column) == best
            ink = "white" if value < low + 0.5 * (high - low) else "black"
            weight = "bold" if is_best else "normal"
            style: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": 8,
                "color": ink,
                "weight": weight,
            }
            axis.text(column, row, f"{value:.1f}", **style)
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
            axis.text(0.01, 0.99, legend, transform=axis.transAxes, va="top", fontsize=7.5, color=_MUTED)
        bar = figure.colorbar(image, ax=axis, shrink=0.8, pad=0.02, label="AUROC (%)")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        return figure

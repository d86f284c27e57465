"""Figures as SVG text whose neutral colours follow the page; the one module that imports Matplotlib.

Text stays text in the SVG. No pyplot and no global state: a report can be made inside anyone's notebook.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle, StepPatch

from ..io import printable
from ..metrics import roc
from .names import shortened
from .tables import one_decimal

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, which can be told apart with any colour vision."""
OTHER, INK, MUTED, LINE, PAPER = "#9d9e9f", "#212223", "#6d6e6f", "#dfe0e1", "#fcfdfe"
NEAR, FAR = PALETTE[:2]
_VARIABLES = {OTHER: "other", INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper"} | {
    colour: f"c{place}" for place, colour in enumerate(PALETTE)
}
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "openood-adascale",
    "text.color": INK,
    "text.parse_math": False,  # names may hold $
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_LONG_TAIL = 30  # largest over lower-quartile magnitude from which on a linear axis shows only one bar
_P = ParamSpec("_P")


def colours(labels: Sequence[str]) -> dict[str, str]:
    """Return a colour per method: AdaSCALE's first, then the others in their order, the rest grey."""
    ordered = sorted(labels, key=lambda label: not label.startswith("AdaSCALE"))
    return {label: PALETTE[i] if i < len(PALETTE) else OTHER for i, label in enumerate(ordered)}


def _drawn(draw: Callable[_P, Figure]) -> Callable[_P, str]:
    """Make a function that draws a figure return its SVG; the same figure gives the same text."""

    @functools.wraps(draw)
    def svg(*args: _P.args, **kwargs: _P.kwargs) -> str:
        buffer = io.StringIO()
        with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # the browser has the alphabet
            draw(*args, **kwargs).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        return re.sub(r" '[^;]*', sans-serif", " system-ui, sans-serif", text[text.index("<svg") :])

    return svg


def inline(svg: str) -> str:
    """Replace neutral colours by the page's CSS variables."""
    return re.sub(
        r"((?:fill|stroke): )(#[0-9a-f]{6})",
        lambda match: match[1] + (f"var(--{_VARIABLES[match[2]]})" if match[2] in _VARIABLES else match[2]),
        svg,
    )


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1))


def _name(name: str) -> str:
    return shortened(printable(name), 40)


@_drawn
def methods(panels: Mapping[str, np.ndarray], tints: Mapping[str, str], published: Sequence[bool]) -> Figure:
    """Draw all methods side by side, with intervals.

    Args:
        panels: By title, (M, 3): mean and the ends of its interval in percent, NaN if unknown.
        tints: Colour by label, in the order of the M methods.
        published: True for each method that was not run; drawn hollow.
    """
    panels = {title: values for title, values in panels.items() if not np.isnan(values[:, 0]).all()}
    figure = _figure(2.2 + 2.0 * len(panels), 0.95 + 0.27 * len(tints))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    rows, colours = np.arange(len(tints)), list(tints.values())
    inks = [MUTED if hollow else INK for hollow in published]
    faces = [PAPER if hollow else colour for colour, hollow in zip(colours, published, strict=True)]
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        mean = values[:, 0]
        low, high = np.where(np.isnan(values[:, 1:]), mean[:, None], values[:, 1:]).T
        axis.set_title(title, fontsize=9.5, loc="left")
        axis.hlines(rows, 0, 1, transform=axis.get_yaxis_transform(), color=LINE, lw=0.8)
        axis.hlines(rows, low, high, color=OTHER, lw=1.6)
        axis.scatter(mean, rows, s=38, c=faces, edgecolors=colours, zorder=3)
        # All values in one column at the right are easy to read, and never over a dot.
        for row in rows[~np.isnan(mean)]:
            axis.text(
                1.03, row, one_decimal(mean[row]), transform=axis.get_yaxis_transform(), va="center", fontsize=8.5,
                color=inks[row], style="italic" if published[row] else "normal",
            )  # fmt: skip
        margin = max(0.08 * (np.nanmax(high) - np.nanmin(low)), 0.5)
        axis.set_xlim(np.nanmin(low) - margin, np.nanmax(high) + margin)
        axis.tick_params(length=0)
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
    for tick, hollow, ink in zip(
        axes[0].set_yticks(rows, list(map(_name, tints))), published, inks, strict=True
    ):
        tick.label1.set(style="italic" if hollow else "normal", color=ink)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.supxlabel("percent", fontsize=8, color=MUTED)
    return figure


@_drawn
def rocs(
    scores: Mapping[str, Mapping[str, np.ndarray]], sets: Sequence[str], tint: Mapping[str, str]
) -> Figure:
    """Draw ROC curves of all methods, a panel per OOD set.

    Args:
        scores: By label and set.
        sets: Names of the OOD sets.
        tint: Colour by label.
    """
    down = -(-len(sets) // 4)
    across = max(2, -(-len(sets) // down))
    figure = _figure(2.75 * across, 2.65 * down + 0.6)
    lines = {}
    for index, name in enumerate(sets, 1):
        axis = figure.add_subplot(down, across, index)
        axis.axhline(95, color=MUTED, lw=0.8, ls=(0, (3, 2)))
        for label, own in scores.items():
            if name in own:
                fpr, tpr = roc(own["id"], own[name])
                some = np.unique(np.linspace(0, len(fpr) - 1, 150).astype(int))
                grey = tint[label] == OTHER
                style: Any = {"color": tint[label], "lw": 0.8 if grey else 1.5, "zorder": 2 if grey else 3}
                (line,) = axis.plot(100 * fpr[some], 100 * tpr[some], **style)
                lines["other methods" if grey else shortened(printable(label), 24)] = line
        axis.set(xlim=(0, 100), ylim=(0, 101), aspect="equal")
        axis.set_xticks([0, 50, 100])
        axis.set_yticks([0, 50, 95])
        axis.set_title(_name(name), fontsize=9.5, loc="left", weight="bold")
    rows = -(-len(lines) // (2 * across + 1))
    figure.legend(
        list(lines.values()), list(lines), loc="outside upper left", ncols=-(-len(lines) // rows), fontsize=8, frameon=False,
        handlelength=1.4, columnspacing=1.6,
    )  # fmt: skip
    figure.supxlabel("ID images flagged as OOD (%)", fontsize=8, color=MUTED)
    figure.supylabel("OOD images detected (%)", fontsize=8, color=MUTED)
    return figure


def _bins(groups: Sequence[np.ndarray]) -> tuple[np.ndarray, float | None]:
    """Return bin edges, and the linear width of an asinh axis or None for a linear axis."""
    ends = np.array([np.quantile(values, (0.01, 0.99)) for values in groups])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    bins = np.linspace(low, high if high > low else low + 1, 61)
    unit = float(np.quantile(np.abs(np.concatenate(groups)), 0.25))
    largest = max(abs(low), abs(high))
    if not (unit > 0 and largest > max(_LONG_TAIL * unit, 1)):  # probabilities stay linear
        return bins, None
    unit = max(unit, 1e-12 * largest)  # float64 has no room for more decades
    first, last = np.arcsinh(bins[[0, -1]] / unit)
    return unit * np.sinh(np.linspace(first, last, 61)), unit


@_drawn
def ridges(panels: Sequence[tuple[str, Mapping[str, np.ndarray], float]], near: Sequence[str]) -> Figure:
    """Draw the distribution of one number per image in each panel, a row per set, ID first, with medians.

    Args:
        panels: The quantity's name, its values by set ((N,) float64, ``id`` among them), and where to draw a dashed line.
        near: Names of the near-OOD sets, which have another colour than the far-OOD sets.
    """
    names = list(dict.fromkeys(name for _, groups, _ in panels for name in groups))
    figure = _figure(1.4 + 3.4 * len(panels), 0.75 + 0.46 * len(names))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (quantity, groups, line) in zip(axes, panels, strict=True):
        bins, unit = _bins(list(groups.values()))
        if unit is not None:
            axis.set_xscale("asinh", linear_width=unit)
            axis.xaxis.set_major_formatter("{x:g}")
        else:
            axis.locator_params(axis="x", nbins=5)
        axis.set_xlim(bins[0], bins[-1])
        axis.axvline(line, color=MUTED, lw=0.9, ls=(0, (3, 2)))
        for name, values in groups.items():
            tint = OTHER if name == "id" else NEAR if name in near else FAR
            base, middle = len(names) - 1 - names.index(name), float(np.median(values))
            share = np.histogram(values, bins)[0].astype(float)
            heights = base + 0.82 * share / max(share.max(), 1)
            # axis.stairs would look for the limits, edge by edge.
            axis.add_artist(StepPatch(heights, bins, baseline=base, fill=True, color=tint, alpha=0.35, lw=0))
            axis.add_artist(StepPatch(heights, bins, baseline=base, fill=False, color=tint, lw=1.2))
            axis.plot([middle, middle], [base, base + 0.82], color=INK, lw=1.8, solid_capstyle="butt")
        axis.set_ylim(-0.1, len(names))
        axis.set_xlabel(_name(quantity), color=INK)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    labels = ["ID" if name == "id" else _name(name) for name in names]
    axes[0].set_yticks(np.arange(len(names))[::-1] + 0.3, labels, color=INK)
    return figure


@_drawn
def search_map(aurocs: pd.DataFrame) -> Figure:
    """Draw the AUROC of a search over percentiles, like Figure 5 of the paper.

    Args:
        aurocs: Percent; rows p_min, columns p_max, NaN for candidates that were not tried.
    """
    values = aurocs.to_numpy(dtype=float)
    figure = _figure(1.2 + 0.52 * values.shape[1], 0.9 + 0.4 * values.shape[0])
    axis = figure.subplots()
    axis.pcolormesh(np.ma.masked_invalid(values), cmap="cividis", snap=True)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    best = np.unravel_index(np.nanargmax(values), values.shape)
    for row, column in np.argwhere(~np.isnan(values)):
        ink = "#ffffff" if values[row, column] <= middle else "#000000"
        is_best = (row, column) == best
        axis.text(
            column + 0.5, row + 0.5, one_decimal(values[row, column]), ha="center", va="center", fontsize=8, color=ink,
            weight="bold" if is_best else "normal",
        )  # fmt: skip
        if is_best or aurocs.index[row] == aurocs.columns[column]:
            style: Any = {"ec": FAR, "lw": 2.4, "zorder": 3} if is_best else {"ec": ink, "ls": ":"}
            axis.add_patch(Rectangle((column + 0.06, row + 0.06), 0.88, 0.88, fill=False, **style))
    axis.set_xticks(np.arange(values.shape[1]) + 0.5, [f"{p:g}" for p in aurocs.columns])
    axis.set_yticks(np.arange(values.shape[0]) + 0.5, [f"{p:g}" for p in aurocs.index])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlabel="p_max", ylabel="p_min")
    return figure

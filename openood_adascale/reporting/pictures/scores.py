"""Scores: distributions and ROC curves, a panel per OOD set; and histograms of any value per image."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from ...metrics import auroc as auroc_of
from ...metrics import fpr95_auroc, roc
from ..scores import Scores
from .style import INK, MUTED, OTHER, figure_of, literal, styled

_ID, _NEAR, _FAR = "#8c8c8c", "#0072B2", "#D55E00"
_LONG_TAIL = 30  # largest over lower-quartile magnitude, from which on a linear axis shows but one bar


def distributions(scores: Scores) -> Figure:
    """Densities of the ID and the OOD scores per OOD set, with the threshold behind FPR@95."""
    with styled():
        figure, panels = _panels(list(scores.near), list(scores.far), 1.9)
        bins, unit = _bins([scores.id, *scores.near.values(), *scores.far.values()])
        for index, (side, name, axis) in enumerate(panels):
            outside = (scores.near if side == "near" else scores.far)[name]
            tint = _NEAR if side == "near" else _FAR
            if unit is not None:
                axis.set_xscale("asinh", linear_width=unit)
            axis.set_xlim(bins[0], bins[-1])  # first, so that nothing has to find limits of its own
            _density(axis, scores.id, outside, bins, tint)
            axis.set_title(literal(name), fontsize=9.5, loc="left", weight="bold", pad=16)
            if unit is None:
                axis.locator_params(axis="x", nbins=4)
            if index == 0:
                write = functools.partial(
                    axis.text, transform=axis.transAxes, fontsize=8, va="top", weight="bold"
                )
                write(0.99, 0.99, "ID", color=MUTED, ha="right")
                write(0.01, 0.99, "OOD", color=tint)
        figure.supxlabel(
            "score: larger = more in-distribution; dashed: 95 % of the OOD images are left of it", fontsize=8
        )
        return figure


def _bins(groups: Sequence[np.ndarray]) -> tuple[np.ndarray, float | None]:
    """Edges for all groups, and where an asinh axis should leave the linear; None for a linear axis.

    Scores such as variant A's, with its exp(r), can span orders of magnitude: then the axis is compressed.
    """
    ends = np.array([np.quantile(values, (0.003, 0.997)) for values in groups])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    bins = np.linspace(low, high if high > low else low + 1, 61)
    unit = float(np.quantile(np.abs(np.concatenate(groups)), 0.25))
    largest = max(abs(low), abs(high))
    if not (unit > 0 and largest > max(_LONG_TAIL * unit, 1)):  # probabilities stay linear
        return bins, None
    unit = max(unit, 1e-12 * largest)  # float64 has no room for more decades
    first, last = np.arcsinh(bins[[0, -1]] / unit)
    return unit * np.sinh(np.linspace(first, last, 61)), unit


def _density(axis: Axes, inside: np.ndarray, outside: np.ndarray, bins: np.ndarray, tint: str) -> None:
    fpr, auroc = fpr95_auroc(inside, outside)
    peak = 0.0
    for values, colour in ((inside, _ID), (outside, tint)):
        # Shares, not densities: scores can span more than float64 can divide by.
        share = np.histogram(values, bins)[0] / len(values)
        # axis.stairs would look for the limits, edge by edge.
        axis.add_artist(StepPatch(share, bins, fill=True, color=colour, alpha=0.35, lw=0))
        axis.add_artist(StepPatch(share, bins, fill=False, color=colour, lw=1.3))
        peak = max(peak, float(share.max()))
    axis.axvline(float(np.quantile(outside, 0.95)), ymax=0.93, color=INK, lw=0.9, ls=(0, (3, 2)))
    axis.text(0, 1.03, f"AUROC {auroc:.1f}   FPR@95 {fpr:.1f}", transform=axis.transAxes, fontsize=8)
    axis.set_ylim(0, 1.18 * peak)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)


def rocs(scores: Mapping[str, Scores], colour: Mapping[str, str]) -> Figure:
    """ROC curves of all methods, one panel per OOD set; the legend is ordered by AUROC (percent)."""
    with styled():
        near = list(dict.fromkeys(name for saved in scores.values() for name in saved.near))
        far = list(dict.fromkeys(name for saved in scores.values() for name in saved.far))
        figure, panels = _panels(near, far, 2.65)
        for index, (side, name, axis) in enumerate(panels):
            curves: list[tuple[float, str, tuple[np.ndarray, np.ndarray]]] = []
            for label, saved in scores.items():
                outside = (saved.near if side == "near" else saved.far).get(name)
                if outside is not None:
                    curves.append((auroc_of(saved.id, outside), label, roc(saved.id, outside)))
            axis.axhline(95, color=MUTED, lw=0.8, ls=(0, (3, 2)))
            for rank, (auroc, label, (fpr, tpr)) in enumerate(sorted(curves, key=lambda curve: -curve[0])):
                grey = colour[label] == OTHER
                axis.plot(
                    100 * fpr,
                    100 * tpr,
                    color=colour[label],
                    lw=0.8 if grey else 1.5,
                    zorder=2 if grey else 4 - rank / 100,
                    label=None if grey else f"{auroc:.1f}  {literal(label)}",
                )
            axis.set(xlim=(0, 100), ylim=(0, 101), aspect="equal")
            axis.set_xticks([0, 50, 100])
            axis.set_yticks([0, 50, 95])
            axis.set_title(literal(name), fontsize=9.5, loc="left", weight="bold")
            axis.legend(loc="lower right", fontsize=7, frameon=False, handlelength=1.2, labelspacing=0.25)
            if index == 0:
                axis.set_ylabel("OOD images caught (%)")
        figure.supxlabel(
            "ID images wrongly flagged (%); FPR@95 is read where a curve crosses the dashed line", fontsize=8
        )
        return figure


def histograms(
    panels: Mapping[str, tuple[str, Mapping[str, np.ndarray]]], colour: Mapping[str, str]
) -> Figure:
    """Shares of the images over one value per image, a panel per value.

    Args:
        panels: by title, what the value is called and its values by group of images.
        colour: of each group.
    """
    figure = Figure(figsize=(4 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, (quantity, groups)) in zip(axes, panels.items(), strict=True):
        low, high = np.percentile(np.concatenate(list(groups.values())), [0.5, 99.5])
        bins = np.linspace(low, max(high, low + 1e-6), 41)
        for group, values in groups.items():
            draw = functools.partial(
                axis.hist,
                values.clip(low, high),
                bins=bins,
                weights=np.full(len(values), 100 / len(values)),
                color=colour[group],
            )
            draw(histtype="stepfilled", alpha=0.25)
            draw(histtype="step", linewidth=1.5, label=group)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set(title=title, xlabel=quantity)
    axes[0].set_ylabel("share of the images (%)")
    axes[0].legend(frameon=False)
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
    figure = figure_of(2.75 * across, height * down + 0.3)
    grid = figure.add_gridspec(down, across)
    return figure, ((side, name, figure.add_subplot(grid[place])) for side, name, place in places)

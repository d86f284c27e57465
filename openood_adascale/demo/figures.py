"""Figure of the demo that explains AdaSCALE on one ID and one OOD image."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..evaluation.result import Result
from .data import DemoData

# Of Okabe and Ito, distinguishable with any colour vision.
_COLOURS = {"ID": "#0072B2", "near-OOD": "#E69F00", "far-OOD": "#009E73"}
_PERCENTILES = (
    "2  How steady is the network?",
    "A few unimportant pixels are changed. If the strongest activations\n"
    "react little and are not unusually large, the percentile is high,\n"
    "and all activations are scaled up more.",
    "percentile p (%)",
)
_SCORES = (
    "3  Is the image in-distribution?",
    "The scaled activations give the logits,\n"
    "and these give the score.\n"
    "Images with a low score are reported as OOD.",
    "score (larger: more in-distribution)",
)


def typical_image(percentiles: NDArray[Any], scores: NDArray[Any]) -> int:
    """Return the index of the image whose ranks by percentile and by score are both closest to the median.

    Args:
        percentiles: Percentiles of one group, shape (N,).
        scores: Scores of the same images, shape (N,).
    """
    middle = (len(scores) - 1) / 2
    distances = [np.abs(np.argsort(np.argsort(values)) - middle) for values in (percentiles, scores)]
    return int(np.argmin(np.maximum(*distances)))


def draw_story(result: Result, data: DemoData) -> Figure:
    """Draw an ID and an OOD image, the percentiles that AdaSCALE chose, and the scores.

    Args:
        result: AdaSCALE's result.
        data: The images it is of.
    """
    percentiles = {name: np.asarray(one.percentiles) for name, one in result.images.items()}
    near = result.near[-1]
    shown = {"ID": ("id", data.test, "a letter"), "near-OOD": (near, data.near[near], f"one of the {near}")}
    places = {
        group: typical_image(percentiles[name], result.scores[name]) for group, (name, *_) in shown.items()
    }
    figure = Figure(figsize=(12, 4.9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(12, 1)).ravel()
    left, *panels = top.subfigures(1, 3, squeeze=False, width_ratios=(0.8, 1.15, 1.15)).ravel()
    left.suptitle("1  Two test images", x=0.04, ha="left", weight="bold", size=11)
    for axes, (group, (name, images, what)) in zip(left.subplots(2, 1), shown.items(), strict=True):
        predicted = data.classes[int(result.images[name].predictions[places[group]])]
        axes.imshow(images[places[group]])
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=_COLOURS[group], linewidth=4)
        axes.set_title(f"{what}; the network says {predicted}", size=9)
    sets = {"ID": ("id",), "near-OOD": result.near, "far-OOD": result.far}
    for panel, texts, values, count in zip(
        panels, (_PERCENTILES, _SCORES), (percentiles, result.scores), (10, 25), strict=True
    ):
        heading, text, label = texts
        panel.suptitle(heading, x=0.1, ha="left", weight="bold", size=11)
        axes = panel.subplots()
        axes.set_title(text, size=9, loc="left")
        axes.set(xlabel=label, ylabel="share of images (%)")
        groups = {group: np.concatenate([values[name] for name in names]) for group, names in sets.items()}
        _histograms(axes, groups, count)
        _mark(axes, {group: values[name][places[group]] for group, (name, *_) in shown.items()})
    handles, labels = axes.get_legend_handles_labels()
    bottom.legend(handles, labels, loc="center", ncols=len(labels), frameon=False)
    return figure


def _histograms(axes: Axes, groups: dict[str, NDArray[Any]], count: int) -> None:
    # A few extreme scores would squeeze all others.
    low, high = np.quantile(np.concatenate(list(groups.values())), (0.002, 0.998))
    bins = np.linspace(low, max(high, low + 1e-6), count + 1).tolist()
    for group, values in groups.items():
        axes.hist(
            np.clip(values, bins[0], bins[-1]), bins, weights=np.full(len(values), 100 / len(values)),
            histtype="stepfilled", fc=(_COLOURS[group], 0.18), ec=_COLOURS[group], linewidth=1.8,
            label=f"{group} ({len(values):,} images)",
        )  # fmt: skip
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.spines[["top", "right"]].set_visible(False)


def _mark(axes: Axes, marks: dict[str, float]) -> None:
    """Draw a line for the image of each group, with its name on the side that has room."""
    low, high = axes.get_xlim()
    for group, value in marks.items():
        place, is_left = float(np.clip(value, low, high)), value < max(marks.values())
        room = (place - low if is_left else high - place) / (high - low)
        axes.axvline(place, ymax=0.86, color=_COLOURS[group], linestyle="--", linewidth=1.4)
        axes.text(
            place, axes.get_ylim()[1] * 0.88, f"{group} image", size=8.5, color=_COLOURS[group], weight="bold",
            ha="center" if room <= 0.32 else "right" if is_left else "left",
        )  # fmt: skip

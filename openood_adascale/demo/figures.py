"""Figure of the demo that explains AdaSCALE on one ID and one OOD image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Okabe and Ito's colours, distinguishable with any colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")


@dataclass(frozen=True)
class Example:
    """An image of the story.

    Attributes:
        image: uint8 array of shape (height, width, 3).
        group: Name of the group that the image belongs to, a key of the percentiles and scores.
        caption: Content of the image and prediction of the network.
        percentile: Percentile that AdaSCALE chose for the image.
        score: AdaSCALE's score of the image.
    """

    image: NDArray[np.uint8]
    group: str
    caption: str
    percentile: float
    score: float


def typical_image(percentiles: NDArray[Any], scores: NDArray[Any]) -> int:
    """Return the index of the image closest to the median in both percentile and score.

    Closeness is measured in ranks.

    Args:
        percentiles: Percentiles of one group, shape (N,).
        scores: Scores of the same images, shape (N,).
    """
    middle = (len(scores) - 1) / 2
    distances = [np.abs(np.argsort(np.argsort(values)) - middle) for values in (percentiles, scores)]
    return int(np.argmin(np.maximum(*distances)))


def draw_story(
    percentiles: Mapping[str, NDArray[Any]],
    scores: Mapping[str, NDArray[Any]],
    examples: tuple[Example, Example],
) -> Figure:
    """Draw two images, the percentiles AdaSCALE chose, and the scores.

    Args:
        percentiles: Percentiles by group, each of shape (N,). The first group is ID.
        scores: Scores by group, each of shape (N,), larger is more in-distribution.
        examples: An ID and an OOD image, marked in the histograms.

    Returns:
        A figure of three panels.
    """
    from matplotlib.figure import Figure

    colours = dict(zip(percentiles, COLOURS, strict=False))
    figure = Figure(figsize=(12, 4.9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(12, 1)).ravel()
    images, middle, right = top.subfigures(1, 3, squeeze=False, width_ratios=(0.8, 1.15, 1.15)).ravel()
    images.suptitle("1  Two test images", x=0.04, ha="left", weight="bold", size=11)
    for axes, example in zip(images.subplots(2, 1), examples, strict=True):
        axes.imshow(example.image)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=colours[example.group], linewidth=4)
        axes.set_title(example.caption, size=9)
    _panel(
        middle, percentiles, 10, [example.percentile for example in examples], examples, colours,
        "2  How steady is the network?",
        "A few unimportant pixels are changed. If the strongest activations\n"
        "react little and are not unusually large, the percentile is high,\n"
        "and all activations are scaled up more.",
        "percentile p (%)",
    )  # fmt: skip
    axes = _panel(
        right, scores, 25, [example.score for example in examples], examples, colours,
        "3  Is the image in-distribution?",
        "The scaled activations give the logits,\n"
        "and these give the score.\n"
        "Images with a low score are reported as OOD.",
        "score (larger: more in-distribution)",
    )  # fmt: skip
    handles, labels = axes.get_legend_handles_labels()
    bottom.legend(handles, labels, loc="center", ncols=len(labels), frameon=False)
    return figure


def _panel(
    panel: SubFigure,
    values: Mapping[str, NDArray[Any]],
    count: int,
    marks: list[float],
    examples: tuple[Example, Example],
    colours: Mapping[str, str],
    heading: str,
    text: str,
    label: str,
) -> Axes:
    """Draw a histogram for each group, and a line for each example."""
    panel.suptitle(heading, x=0.1, ha="left", weight="bold", size=11)
    axes: Axes = panel.subplots()
    axes.set_title(text, size=9, loc="left")
    axes.set(xlabel=label, ylabel="share of images (%)")
    # A few extreme scores would squeeze all others.
    low, high = np.quantile(np.concatenate(list(values.values())), (0.002, 0.998))
    bins = np.linspace(low, max(high, low + 1e-6), count + 1).tolist()
    for group, part in values.items():
        axes.hist(
            np.clip(part, bins[0], bins[-1]), bins, weights=np.full(len(part), 100 / len(part)),
            histtype="stepfilled", fc=(colours[group], 0.18), ec=colours[group], linewidth=1.8,
            label=f"{group} ({len(part):,} images)",
        )  # fmt: skip
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.get_xlim()
    for place, other, example in zip(marks, marks[::-1], examples, strict=True):
        place, colour = float(np.clip(place, low, high)), colours[example.group]
        outwards = "right" if place < other else "left"
        room = (place - low if outwards == "right" else high - place) / (high - low)
        axes.axvline(place, ymax=0.86, color=colour, linestyle="--", linewidth=1.4)
        axes.text(
            place, axes.get_ylim()[1] * 0.88, f"{example.group} image", ha=outwards if room > 0.32 else "center",
            size=8.5, color=colour, weight="bold",
        )  # fmt: skip
    return axes

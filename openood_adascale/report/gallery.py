"""Images that fooled a method, and images on which two methods disagree."""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..data.decoding import read_image
from ..errors import ImageError
from ..metrics import score_kept
from .names import shortened
from .run import IMAGE_COLUMNS, MethodResult, Run

TPR = 0.95
"""Share of the ID images that the threshold accepts."""
_SIDE, _TINY = 144, 64  # pixels of a thumbnail; images up to the second are lossless


class Card(NamedTuple):
    """An image with its captions."""

    source: str
    """A data URI, empty if the image cannot be read."""
    name: str
    lines: list[str]


Panel = tuple[str, list[tuple[str, list[Card]]]]
"""A heading, and rows of images, each with a title."""


@dataclass
class Gallery:
    """The images of a run."""

    pair: tuple[str, str] | None = None
    disagreement: list[Panel] = field(default_factory=list)
    methods: list[Panel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gallery(run: Run, pair: tuple[str, str] | None, limit: int) -> Gallery:
    """Choose and read the images that a report shows.

    Args:
        run: With ``images`` that have paths.
        pair: Labels of the two methods that are compared (default: AdaSCALE-A and the best other method).
        limit: Largest number of images in a row.
    """
    tables = {one.label: _images(run, one) for one in run.ranked() if "id" in run.values(one)}
    paths = run.images.groupby("set", sort=False)["path"]
    sets = [key for key in ("id", *run.sets) if key in paths.groups and (paths.get_group(key) != "").all()]
    if not sets or not tables:
        return Gallery(notes=["No images: the run has no table of images with their files."])
    broken: dict[str, str] = {}

    @functools.cache
    def source(path: str) -> str:
        try:
            return thumbnail(path)
        except ImageError as error:
            broken[path] = str(error)
            return ""

    def card(image: Any, *lines: str) -> Card:
        name = "/".join([part for part in re.split(r"[/\\]", image.path) if part][-2:])
        head = [f"predicted {_class(run, image.prediction)}"] if image.prediction >= 0 else []
        head += [f"is {_class(run, image.label)}"] if image.label >= 0 and image.set == "id" else []
        tail = [] if np.isnan(image.percentile) else [f"p = {image.percentile:.2f}"]
        return Card(source(image.path), shortened(name, 60), [*head, *lines, *tail])

    def fooled(label: str) -> Panel:
        images = tables[label]
        threshold = score_kept(np.sort(images["score"][images["set"] == "id"]), TPR)
        rows = []
        for key in sets:
            own, is_id = images[images["set"] == key], key == "id"
            wrong = own[(own["score"] >= threshold) != is_id]
            worst = wrong.sort_values("score", ascending=is_id, kind="stable").head(limit)
            cards = [card(image, f"rank {_percent(image.rank)}") for image in worst.itertuples()]
            title = f"{title_of(key)}: {len(wrong)} of {len(own)} are {'rejected' if is_id else 'accepted'}"
            rows += [(title, cards)] if len(own) else []
        return label, rows

    def disagreement(one: str, other: str, key: str) -> Panel:
        images = tables[one].assign(other=tables[other]["rank"]).query("set == @key")
        rows = []
        for high, low, sign in ((one, other, 1), (other, one, -1)):
            above = images.assign(above=sign * (images["rank"] - images["other"])).query("above > 0")
            most = above.sort_values("above", ascending=False, kind="stable").head(limit)
            cards = [
                card(image, f"{one}: {_percent(image.rank)}", f"{other}: {_percent(image.other)}")
                for image in most.itertuples()
            ]
            rows.append((f"{high} ranks them higher: {high if key == 'id' else low} is right", cards))
        return title_of(key), rows

    def title_of(key: str) -> str:
        return "ID images" if key == "id" else f"{key} ({'near' if key in run.near else 'far'}-OOD)"

    made = Gallery()
    pair = pair or _default_pair(list(tables))
    if pair and {*pair} <= {*tables}:
        made.pair = pair
        made.disagreement = [disagreement(*pair, key) for key in sets]
    made.methods = [fooled(label) for label in dict.fromkeys([next(iter(tables)), *(made.pair or ())])]
    cards = [one for panel in (*made.methods, *made.disagreement) for _, row in panel[1] for one in row]
    if broken and not any(one.source for one in cards):
        made = Gallery(notes=[f"No images: their files cannot be read: {next(iter(broken.values()))}"])
    elif broken:
        made.notes.append(f"{len(broken)} image(s) cannot be read, such as {next(iter(broken.values()))}")
    return made


def _default_pair(labels: Sequence[str]) -> tuple[str, str] | None:
    """Return AdaSCALE-A, else the best method, and the best other method."""
    first, *others = sorted(labels, key=lambda label: not label.startswith("AdaSCALE-A"))
    others.sort(key=lambda label: label.startswith("AdaSCALE"))
    return (first, others[0]) if others else None


def _images(run: Run, method: MethodResult) -> pd.DataFrame:
    """Return the images that a method has scores of, with ``score``, ``percentile`` and ``rank``.

    The rank is the percentage of the ID images that score lower, ties counted half.
    """
    score = run.images[f"score_{method.name}"]
    percentile = run.images.get(f"percentile_{method.name}", np.nan)
    images = run.images[list(IMAGE_COLUMNS)].assign(score=score, percentile=percentile).dropna(subset="score")
    ordered = np.sort(images["score"][images["set"] == "id"])
    lower, reached = (np.searchsorted(ordered, images["score"], side) for side in ("left", "right"))
    return images.assign(rank=50 * (lower + reached) / len(ordered))


def _class(run: Run, number: int) -> str:
    return shortened(run.classes[number], 60) if number < len(run.classes) else f"class {number}"


def _percent(value: float) -> str:
    return f"{value:.1f} %" if 0 < value < 1 or 99 < value < 100 else f"{value:.0f} %"


def thumbnail(path: str) -> str:
    """Return a small copy of an image file as a data URI: PNG for images of few pixels, else JPEG.

    Raises:
        ImageError: If the file is not a readable image.
    """
    small = read_image(path)
    small.thumbnail((_SIDE, _SIDE), reducing_gap=3.0)
    small.info.clear()  # pixels alone: no place, no profile, no comment
    kind, buffer = "png" if max(small.size) <= _TINY else "jpeg", io.BytesIO()
    small.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

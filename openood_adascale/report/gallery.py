"""Images that fooled a method, and images on which two methods disagree."""

from __future__ import annotations

import base64
import io
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ResultError
from ..metrics import score_kept
from .names import label_of, shortened, shown
from .run import MethodResult, Run

TPR = 0.95
"""Share of the ID images that the threshold accepts."""
_SIDE, _TINY = 144, 64  # pixels of a thumbnail; up to the second an image is embedded as it is
_NOT_READ = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}  # no images, or run other programs


@dataclass(frozen=True)
class Card:
    """An image with its captions."""

    source: str
    """A data URI, empty if the image cannot be read."""
    tiny: bool
    name: str
    lines: list[str]


@dataclass(frozen=True)
class Panel:
    """Rows of images under one heading."""

    title: str
    rows: list[tuple[str, list[Card]]]


@dataclass
class Gallery:
    """The images of a run."""

    pair: tuple[str, str] | None = None
    disagreement: list[Panel] = field(default_factory=list)
    methods: list[Panel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def chosen_pair(run: Run, names: Sequence[str] | None) -> tuple[str, str] | None:
    """Return the labels of the two methods whose images are compared.

    Args:
        run: Its methods.
        names: Two names or labels (default: AdaSCALE-A and the best other method, if both have scores).

    Raises:
        ResultError: If these are not two different methods of the run.
    """
    if names is None:
        labels = [one.label for one in run.ranked() if one.scores]
        first = next(
            (label for label in labels if label.startswith("AdaSCALE-A")), labels[0] if labels else ""
        )
        others = sorted(
            (label for label in labels if label != first), key=lambda label: label.startswith("AdaSCALE")
        )
        return (first, others[0]) if others else None
    known = {key.casefold(): one.label for one in run.methods for key in (one.name, one.label)}
    found = [
        known.get(name.strip().casefold()) or known.get(label_of(name.strip()).casefold()) for name in names
    ]
    if len(found) != 2 or None in found or found[0] == found[1]:
        labels = [one.label for one in run.methods]
        raise ResultError(
            f"compare-methods: {', '.join(names)!r}; expected two different ones of {', '.join(labels)}"
        )
    return str(found[0]), str(found[1])


def gallery(run: Run, pair: tuple[str, str] | None, limit: int) -> Gallery:
    """Choose and read the images that a report shows.

    Args:
        run: With ``images`` that have paths.
        pair: Labels of the two methods that are compared.
        limit: Largest number of images in a row.
    """
    made, thumbnails = Gallery(pair), _Thumbnails()
    methods = {one.label: one for one in run.ranked() if one.scores}
    sets = [key for key in ("id", *run.sets) if key in run.images and run.images[key].paths]
    if not sets or not methods:
        made.pair = None
        made.notes.append("No images: the run has no table of images with their files.")
        return made
    if pair and {*pair} <= {*methods}:
        one, other = methods[pair[0]], methods[pair[1]]
        made.disagreement = [_disagreement(run, one, other, key, limit, thumbnails) for key in sets]
    for label in list(dict.fromkeys([next(iter(methods)), *(pair or ())])):
        if label in methods:
            made.methods.append(_fooled(run, methods[label], sets, limit, thumbnails))
    cards = [card for panel in (*made.methods, *made.disagreement) for _, row in panel.rows for card in row]
    if thumbnails.broken and cards:
        path, reason = next(iter(thumbnails.broken.items()))
        if any(card.source for card in cards):
            made.notes.append(f"{len(thumbnails.broken)} image(s) cannot be read, such as {path}: {reason}")
        else:
            made = Gallery(
                notes=[f"No images: their files are not where they were, such as {path}: {reason}"]
            )
    return made


def ranks(id_scores: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return (N,) the percentage of the ID images that score lower, ties counted half."""
    ordered = np.sort(id_scores)
    lower, reached = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    found: np.ndarray = 50 * (lower + reached) / len(ordered)
    return found


def _set_title(run: Run, key: str) -> str:
    return "ID images" if key == "id" else f"{key} ({'near' if key in run.near else 'far'}-OOD)"


def _fooled(
    run: Run, method: MethodResult, sets: Sequence[str], limit: int, thumbnails: _Thumbnails
) -> Panel:
    threshold = score_kept(np.sort(method.scores["id"]), TPR)
    rows = []
    for key in sets:
        if key not in method.scores:
            continue
        scores = method.scores[key]
        accepted = scores >= threshold
        wrong = np.flatnonzero(accepted != (key == "id"))
        order = np.argsort(scores[wrong] if key == "id" else -scores[wrong], kind="stable")[:limit]
        said = "rejected" if key == "id" else "accepted"
        rank = ranks(method.scores["id"], scores)
        cards = [
            _card(
                run,
                key,
                place,
                [f"rank {_percent(rank[place])}", *_percentile(method, key, place)],
                thumbnails,
            )
            for place in wrong[order]
        ]
        rows.append((f"{_set_title(run, key)}: {len(wrong)} of {len(scores)} are {said}", cards))
    return Panel(method.label, rows)


def _disagreement(
    run: Run, one: MethodResult, other: MethodResult, key: str, limit: int, thumbnails: _Thumbnails
) -> Panel:
    rows = []
    if key in one.scores and key in other.scores:
        first, second = (ranks(method.scores["id"], method.scores[key]) for method in (one, other))
        for high, low, above in ((one, other, first - second), (other, one, second - first)):
            order = np.argsort(-above, kind="stable")[:limit]
            cards = [
                _card(
                    run, key, place,
                    [f"{one.label}: {_percent(first[place])}", f"{other.label}: {_percent(second[place])}",
                     *_percentile(one, key, place)], thumbnails,
                )
                for place in order[above[order] > 0]
            ]  # fmt: skip
            better = high.label if key == "id" else low.label
            rows.append((f"{high.label} ranks them higher: {better} is right", cards))
    return Panel(_set_title(run, key), rows)


def _percent(value: float) -> str:
    return f"{value:.1f} %" if 0 < value < 1 or 99 < value < 100 else f"{value:.0f} %"


def _percentile(method: MethodResult, key: str, place: int) -> list[str]:
    return [f"p = {method.percentiles[key][place]:.2f}"] if key in method.percentiles else []


def _card(run: Run, key: str, place: int, lines: Iterable[str], thumbnails: _Thumbnails) -> Card:
    images = run.images[key]
    path = images.paths[place]
    predicted, label = _class(run, int(images.predictions[place])), _class(run, int(images.labels[place]))
    head = [f"predicted {predicted}"] if predicted else []
    head += [f"is {label}"] if label and key == "id" else []
    parts = [part for part in re.split(r"[/\\]", path) if part]
    source, tiny = thumbnails.of(path)
    return Card(source, tiny, shortened(shown("/".join(parts[-2:])), 60), [*head, *lines])


def _class(run: Run, number: int) -> str:
    if number < 0:
        return ""
    return shortened(shown(run.classes[number]), 60) if number < len(run.classes) else f"class {number}"


class _Thumbnails:
    """Small copies of image files as data URIs, each made once."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[str, bool]] = {}
        self.broken: dict[str, str] = {}
        """Reasons by path."""

    def of(self, path: str) -> tuple[str, bool]:
        """Return the data URI, empty if the file cannot be read, and True for an image of few pixels."""
        if path not in self._made:
            try:
                self._made[path] = _thumbnail(path)
            except Exception as error:  # Pillow's decoders raise anything on damaged files
                self._made[path] = "", False
                self.broken[path] = str(getattr(error, "strerror", None) or error or type(error).__name__)
        return self._made[path]


def _thumbnail(path: str) -> tuple[str, bool]:
    from PIL import Image

    Image.init()
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
        raise OSError("not a regular file")
    with Image.open(path, formats=sorted(set(Image.OPEN) - _NOT_READ)) as image:
        image.draft("RGB", (2 * _SIDE, 2 * _SIDE))
        small = _in_rgb(image)
    small.thumbnail((_SIDE, _SIDE), reducing_gap=3.0)
    small.info.clear()  # pixels alone: no place, no profile, no comment
    tiny, buffer = max(small.size) <= _TINY, io.BytesIO()
    small.save(buffer, **({"format": "png", "optimize": True} if tiny else {"format": "jpeg", "quality": 82}))
    kind = "png" if tiny else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", tiny


def _in_rgb(image: Any) -> Any:
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip all above 255
        from PIL import Image

        pixels = np.asarray(image, np.float64)
        white = 65535 if image.mode.startswith("I") else 1
        return Image.fromarray(np.nan_to_num(255 * pixels / white).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    return (
        image.convert("RGBA").convert("RGB")
        if image.mode in ("P", "PA", "La", "RGBa")
        else image.convert("RGB")
    )

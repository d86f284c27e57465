"""Images that fooled a method, and images on which two methods disagree."""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.decoding import read_image
from ..errors import ImageError, ResultError
from ..io import printable
from ..metrics import score_kept
from .names import label_of, shortened
from .run import MethodResult, Run

TPR = 0.95
"""Share of the ID images that the threshold accepts."""
_SIDE, _TINY = 144, 64  # pixels of a thumbnail; images up to the second are lossless


@dataclass(frozen=True)
class Card:
    """An image with its captions."""

    source: str
    """A data URI, empty if the image cannot be read."""
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


def chosen_pair(methods: Iterable[MethodResult], names: Sequence[str]) -> tuple[str, str]:
    """Return the labels of two methods, given by name or label.

    Raises:
        ResultError: If these are not two different methods.
    """
    known = {key.casefold(): one.label for one in methods for key in (one.name, one.label)}
    names = [name.strip() for name in names]
    found = [known.get(name.casefold()) or known.get(label_of(name).casefold()) for name in names]
    if len(found) != 2 or not (found[0] and found[1]) or found[0] == found[1]:
        labels = ", ".join(dict.fromkeys(known.values()))
        raise ResultError(f"compare-methods: {', '.join(names)!r}; expected two different ones of {labels}")
    return found[0], found[1]


def _default_pair(labels: Sequence[str]) -> tuple[str, str] | None:
    """Return AdaSCALE-A, else the best method, and the best other method."""
    first, *others = sorted(labels, key=lambda label: not label.startswith("AdaSCALE-A"))
    others.sort(key=lambda label: label.startswith("AdaSCALE"))
    return (first, others[0]) if others else None


def gallery(run: Run, pair: tuple[str, str] | None, limit: int) -> Gallery:
    """Choose and read the images that a report shows.

    Args:
        run: With ``images`` that have paths.
        pair: Labels of the two methods that are compared (default: AdaSCALE-A and the best other method).
        limit: Largest number of images in a row.
    """
    methods = {one.label: one for one in run.ranked() if run.values(one)}
    paths = run.images.groupby("set", sort=False)["path"]
    sets = [key for key in ("id", *run.sets) if key in paths.groups and (paths.get_group(key) != "").all()]
    if not sets or not methods:
        return Gallery(notes=["No images: the run has no table of images with their files."])
    broken: dict[str, str] = {}

    @functools.cache
    def source(path: str) -> str:
        try:
            return thumbnail(path)
        except ImageError as error:
            broken[path] = str(error)
            return ""

    views = {label: _View(run, method, source) for label, method in methods.items()}
    made = Gallery()
    pair = pair or _default_pair(list(methods))
    if pair and {*pair} <= {*methods}:
        made.pair = pair
        made.disagreement = [_disagreement(views[pair[0]], views[pair[1]], key, limit) for key in sets]
    for label in dict.fromkeys([next(iter(methods)), *(made.pair or ())]):
        made.methods.append(_fooled(views[label], sets, limit))
    cards = [card for panel in (*made.methods, *made.disagreement) for _, row in panel.rows for card in row]
    if broken and not any(card.source for card in cards):
        made = Gallery(notes=[f"No images: their files cannot be read: {next(iter(broken.values()))}"])
    elif broken:
        made.notes.append(f"{len(broken)} image(s) cannot be read, such as {next(iter(broken.values()))}")
    return made


def ranks(id_scores: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return (N,) the percentage of the ID images that score lower, ties counted half."""
    ordered = np.sort(id_scores)
    lower, reached = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    found: np.ndarray = 50 * (lower + reached) / len(ordered)
    return found


class _View:
    """A method's scores and ranks by set, and its cards."""

    def __init__(self, run: Run, method: MethodResult, source: Callable[[str], str]) -> None:
        self.run, self.label, self._source = run, method.label, source
        self.scores = run.values(method)
        self.ranks = {key: ranks(self.scores["id"], values) for key, values in self.scores.items()}
        self._percentiles = run.values(method, "percentile")
        self._images = dict(list(run.images.groupby("set", sort=False)))

    def card(self, key: str, place: int, lines: Sequence[str]) -> Card:
        image = self._images[key].iloc[place]
        predicted, label = (_class(self.run, int(image[name])) for name in ("prediction", "label"))
        head = [f"predicted {predicted}"] if predicted else []
        head += [f"is {label}"] if label and key == "id" else []
        tail = [f"p = {self._percentiles[key][place]:.2f}"] if key in self._percentiles else []
        name = "/".join([part for part in re.split(r"[/\\]", image["path"]) if part][-2:])
        return Card(self._source(image["path"]), shortened(printable(name), 60), [*head, *lines, *tail])


def _class(run: Run, number: int) -> str:
    if number < 0:
        return ""
    return shortened(printable(run.classes[number]), 60) if number < len(run.classes) else f"class {number}"


def _set_title(run: Run, key: str) -> str:
    return "ID images" if key == "id" else f"{key} ({'near' if key in run.near else 'far'}-OOD)"


def _fooled(view: _View, sets: Sequence[str], limit: int) -> Panel:
    threshold = score_kept(np.sort(view.scores["id"]), TPR)
    rows = []
    for key in [key for key in sets if key in view.scores]:
        scores = view.scores[key]
        wrong = np.flatnonzero((scores >= threshold) != (key == "id"))
        order = np.argsort(scores[wrong] if key == "id" else -scores[wrong], kind="stable")[:limit]
        said = "rejected" if key == "id" else "accepted"
        cards = [
            view.card(key, place, [f"rank {_percent(view.ranks[key][place])}"]) for place in wrong[order]
        ]
        rows.append((f"{_set_title(view.run, key)}: {len(wrong)} of {len(scores)} are {said}", cards))
    return Panel(view.label, rows)


def _disagreement(one: _View, other: _View, key: str, limit: int) -> Panel:
    rows = []
    if key in one.scores and key in other.scores:
        first, second = one.ranks[key], other.ranks[key]
        for high, low, above in ((one, other, first - second), (other, one, second - first)):
            order = np.argsort(-above, kind="stable")[:limit]
            cards = [
                one.card(
                    key, place,
                    [f"{one.label}: {_percent(first[place])}", f"{other.label}: {_percent(second[place])}"],
                )
                for place in order[above[order] > 0]
            ]  # fmt: skip
            right = high.label if key == "id" else low.label
            rows.append((f"{high.label} ranks them higher: {right} is right", cards))
    return Panel(_set_title(one.run, key), rows)


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

"""An image of a report with what there is to say of it, so that a person sees why it was judged as it was."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from . import standouts
from .scores import Scores
from .text import shortened, shown
from .thumbnails import Thumbnail, Thumbnails

_LONGEST_LINE = 60


@dataclass(frozen=True)
class Card:
    """An image, and what there is to say of it."""

    thumbnail: Thumbnail | None
    name: str
    """The end of its path."""
    lines: list[str]
    wrong: bool = False
    """Whether it is on the wrong side of the method's threshold."""


@dataclass(frozen=True)
class View:
    """What one method says of the images of one run."""

    label: str
    saved: Scores

    @cached_property
    def least(self) -> float:
        """The threshold that keeps 95 % of the known images."""
        return standouts.threshold(self.saved.id)

    def scores(self, key: str) -> np.ndarray:
        """(N,) of ``id`` or an OOD set that was scored."""
        found = self.saved.of(key)
        return np.empty(0) if found is None else found

    def ranks(self, key: str) -> np.ndarray:
        """(N,) the share of the known images that score lower, in percent."""
        return standouts.ranks(self.saved.id, self.scores(key))

    def card(self, key: str, place: int, thumbnails: Thumbnails) -> Card:
        """An image of a set, as this method sees it."""
        score = float(self.scores(key)[place])
        kept = score >= self.least
        lines = [f"score {score:.4g}", f"rank {percent(self._rank(score))}"]
        if (adaptive := self._adaptive(key, place)) is not None:
            lines.append(f"p = {adaptive:.2f}")
        return _card(self.saved, key, place, [self.saved], lines, kept == (key != "id"), thumbnails)

    def said(self, key: str, place: int) -> list[str]:
        """The same, in fewer lines and with the method's name."""
        score = float(self.scores(key)[place])
        adaptive = self._adaptive(key, place)
        kept = "kept" if score >= self.least else "refused"
        return [
            f"{self.label}: {percent(self._rank(score))}",
            kept if adaptive is None else f"{kept}, p = {adaptive:.2f}",
        ]

    def _rank(self, score: float) -> float:
        return float(standouts.ranks(self.saved.id, np.array([score]))[0])

    def _adaptive(self, key: str, place: int) -> float | None:
        percentiles = self.saved.images[key].percentiles
        return None if percentiles is None else float(percentiles[place])


def card_of_two(one: View, other: View, key: str, place: int, thumbnails: Thumbnails) -> Card:
    """An image of a set, as two methods see it."""
    lines = [line for view in (one, other) for line in view.said(key, place)]
    return _card(one.saved, key, place, [one.saved, other.saved], lines, False, thumbnails)


def _card(
    saved: Scores,
    key: str,
    place: int,
    all_of: Sequence[Scores],
    lines: list[str],
    wrong: bool,
    thumbnails: Thumbnails,
) -> Card:
    known = saved.images[key]
    predicted = dict.fromkeys(_class(each, int(each.images[key].predictions[place])) for each in all_of)
    head = [f"as {' / '.join(predicted)}"] if any(predicted) else []
    if label := _class(saved, int(known.labels[place])) if key == "id" else "":
        head.append(f"is {label}")
    path = known.paths[place]
    return Card(thumbnails.of(path), _end_of(path), [*head, *lines], wrong)


def _class(saved: Scores, number: int) -> str:
    """A class by its name where that is known; nothing where the class itself is not."""
    if number < 0:
        return ""
    name = saved.classes.get(number, "").strip()
    return shortened(shown(name), _LONGEST_LINE) if name else f"class {number}"


def _end_of(path: str) -> str:
    """A file and its folder: enough to find it in images.csv, and not where it lies."""
    parts = [part for part in re.split(r"[/\\]", path) if part]
    return shortened(shown("/".join(parts[-2:])), _LONGEST_LINE)


def percent(value: float) -> str:
    """``98 %``; with a decimal where that would say all or none."""
    return f"{value:.1f} %" if 0 < value < 1 or 99 < value < 100 else f"{value:.0f} %"

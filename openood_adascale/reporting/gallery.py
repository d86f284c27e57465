"""The images that a report shows: those that fooled each method, those that it would have refused, and those on which two
methods disagree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import ResultError
from . import standouts
from .cards import Card, View, card_of_two
from .names import is_adascale, label_of
from .runs import Evaluated, Run
from .scores import Scores
from .text import shown
from .thumbnails import Thumbnails

MOST = 8
"""Images of a row."""
_MOST_METHODS = 6
_NEEDED = (
    "scores of each image are needed, as eval_ood.py --save-score or openood-adascale evaluate saves them"
)


@dataclass(frozen=True)
class Row:
    """Images side by side."""

    title: str
    cards: list[Card]


@dataclass(frozen=True)
class Panel:
    """Rows that can be folded under a title."""

    title: str
    rows: list[Row]


@dataclass
class Gallery:
    """What a report shows of the images of one scheme."""

    pair: tuple[str, str] | None = None
    """The labels of the two methods that are held against each other."""
    disagreement: list[Panel] = field(default_factory=list)
    """A panel for each set."""
    ranks: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Of the pair: (N,) ranks by each, by set, ``id`` last; in percent."""
    methods: list[Panel] = field(default_factory=list)
    """A panel for each method."""
    lines: list[str] = field(default_factory=list)
    """What is not shown, and what would be needed."""


def pair_of(run: Run, pair: Sequence[str] | None) -> tuple[str, str] | None:
    """The labels of the two methods that were asked for.

    Args:
        run: whose methods they are.
        pair: names in the registry or OpenOOD, or labels; None leaves the choice to each scheme.

    Raises:
        ResultError: not two different ones of the run's methods.
    """
    if pair is None:
        return None
    labels = {method.label.casefold(): method.label for methods in run.methods.values() for method in methods}
    found = []
    for name in pair:
        label = labels.get(name.casefold()) or labels.get(label_of(name).casefold())
        if label is None:
            there = ", ".join(labels.values()) or "there are none"
            raise ResultError(f"pair: {name!r} is none of the methods; expected two of them: {there}")
        found.append(label)
    if len(found) != 2 or found[0] == found[1]:
        raise ResultError(f"pair: {', '.join(pair)!r} is not allowed; expected two different methods")
    return found[0], found[1]


def gallery(
    methods: Sequence[Evaluated],
    pair: tuple[str, str] | None = None,
    most: int = MOST,
) -> Gallery:
    """What there is to show of a scheme's methods.

    Args:
        methods: best first.
        pair: labels of two of them; None, or others, takes AdaSCALE-A (or the best) and the best other.
        most: images of a row at most.
    """
    thumbnails = Thumbnails()
    made = Gallery(lines=_lacking(methods))
    pictured = {method.label: method for method in methods if _pictured(method)}
    made.pair = pair if pair and {*pair} <= {*pictured} else _usual_pair(list(pictured))
    if made.pair:
        _disagree(made, pictured[made.pair[0]], pictured[made.pair[1]], most, thumbnails)
    labels = list(dict.fromkeys([*(made.pair or ()), *pictured]))
    for label in labels[:_MOST_METHODS]:
        saved = _pictured(pictured[label])
        if saved:
            made.methods.append(_panel(View(label, saved[0]), most, thumbnails))
    if len(labels) > _MOST_METHODS:
        left = ", ".join(labels[_MOST_METHODS:])
        made.lines.append(
            f"no images of {left}: those of {_MOST_METHODS} methods are shown, a chosen pair's first"
        )
    _tell_of_broken(made, thumbnails)
    return made


def _pictured(method: Evaluated) -> list[Scores]:
    """A method's scores of which it is known which image they are of."""
    return [saved for saved in method.scores if any(known.paths for known in saved.images.values())]


def _lacking(methods: Sequence[Evaluated]) -> list[str]:
    """A line for each reason why something is not shown."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for method in methods:
        saved = next(iter(_pictured(method) or method.scores), None)
        if saved is None or not saved.images:
            reasons.setdefault(_NEEDED, {})[method.label] = []
            continue
        unknown = {key: known.unknown for key, known in saved.images.items() if not known.paths}
        for reason in dict.fromkeys(unknown.values()):
            sets = [key for key, why in unknown.items() if why == reason]
            reasons.setdefault(reason, {})[method.label] = sets if len(sets) < len(saved.images) else []
    lines = []
    for reason, labels in reasons.items():
        what = [label for label, sets in labels.items() if not sets]
        what += dict.fromkeys(_spelt(key) for sets in labels.values() for key in sets)
        everything = len(labels) == len(methods) and not any(labels.values())
        lines.append(shown(f"no images{'' if everything else f' of {_listed(what)}'}: {reason}"))
    return lines


def _listed(names: Sequence[str]) -> str:
    few = ", ".join(names[:6])
    return few if len(names) <= 6 else f"{few} and {len(names) - 6} more"


def _spelt(key: str) -> str:
    return "the known images" if key == "id" else key


def _usual_pair(labels: list[str]) -> tuple[str, str] | None:
    """AdaSCALE-A, or the best; and the best of the others, AdaSCALE's variants last."""
    if len(labels) < 2:
        return None
    one = next((label for label in labels if label.startswith("AdaSCALE-A")), labels[0])
    others = [label for label in labels if label != one]
    return one, next((label for label in others if not is_adascale(label)), others[0])


def _keys(saved: Scores) -> Iterator[tuple[str, str]]:
    """The OOD sets by name and side, then the known images."""
    for side, sets in (("near", saved.near), ("far", saved.far)):
        yield from ((key, side) for key in sets if key in saved.images)
    if "id" in saved.images:
        yield "id", "id"


def _panel(view: View, most: int, thumbnails: Thumbnails) -> Panel:
    """The images that fooled a method, and the known ones that it would have refused."""
    rows = []
    for key, side in _keys(view.saved):
        if not view.saved.images[key].paths:
            continue
        scores = view.scores(key)
        below = int(np.count_nonzero(scores < view.least))
        if key == "id":
            title = f"Known images: {below} of {len(scores)} are refused"
            places = standouts.refused(scores, view.least, most)
        else:
            title = f"{key} ({side}-OOD): {len(scores) - below} of {len(scores)} are kept"
            places = standouts.highest(scores, most)
        rows.append(Row(title, [view.card(key, int(place), thumbnails) for place in places]))
    return Panel(f"{view.label}: threshold {view.least:.4g}", rows)


def _disagree(made: Gallery, one: Evaluated, other: Evaluated, most: int, thumbnails: Thumbnails) -> None:
    """Fill in the panels of a pair of methods."""
    both = [(a, b) for a in _pictured(one) for b in _pictured(other) if a.source == b.source]
    if not both:
        made.lines.append(
            f"{one.label} and {other.label} are not held against each other: their scores are not of one run"
        )
        return
    first, second = View(one.label, both[0][0]), View(other.label, both[0][1])
    for key, side in _keys(first.saved):
        known, same = first.saved.images[key], second.saved.images.get(key)
        if not known.paths or same is None or same.paths != known.paths:
            continue
        ranks = first.ranks(key), second.ranks(key)
        made.ranks[key] = ranks
        rows = []
        for high, low, places in (
            (first, second, standouts.disagreement(*ranks, most)),
            (second, first, standouts.disagreement(*ranks[::-1], most)),
        ):
            better = high if key == "id" else low
            cards = [card_of_two(first, second, key, int(place), thumbnails) for place in places]
            title = f"{high.label} ranks them higher than {low.label} does: here {better.label} does better"
            rows.append(Row(title, cards))
        made.disagreement.append(Panel("Known images" if key == "id" else f"{key} ({side}-OOD)", rows))


def _tell_of_broken(made: Gallery, thumbnails: Thumbnails) -> None:
    """Note what could not be read; where that is everything, nothing is shown."""
    cards = [
        card for panel in (*made.disagreement, *made.methods) for row in panel.rows for card in row.cards
    ]
    if not thumbnails.broken or not cards:
        return
    path, why = next(iter(thumbnails.broken.items()))
    if all(card.thumbnail is None for card in cards):
        made.disagreement, made.methods = [], []
        made.lines.append(shown(f"no images: they are needed where they were, such as {path}: {why}"))
    else:
        count = len(thumbnails.broken)
        made.lines.append(shown(f"{count} image(s) cannot be read and are left grey, such as {path}: {why}"))

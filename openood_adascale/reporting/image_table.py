"""``images.csv``: a row for each image, with what every method says of it; written of results, and read again."""

from __future__ import annotations

import csv
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ResultError
from ..evaluation.per_image import PerImage
from .names import AVERAGES
from .scores import Scores, finite
from .text import is_name, shortened

if TYPE_CHECKING:
    from ..evaluation.evaluate import Result

NAME = "images.csv"
COLUMNS = ("set", "side", "path", "label", "prediction", "class")
"""What stands before the methods' columns: the set's name (``id`` of the known images); ``id``, ``near`` or ``far``; the
file; its class, where it is known; the predicted class, and its name where that is known."""
SCORE, PERCENTILE = "score_", "percentile_"
"""What the methods' columns begin with: the score; of AdaSCALE also the adaptive percentile, in percent."""
_SIDES = ("id", "near", "far")


def write(results: Mapping[str, Result], path: str | Path) -> Path:
    """Write a row for each test image of results of one network, the known ones first.

    Args:
        results: by method, as ``evaluate`` gives them.
        path: of the CSV; its folder is made.

    Raises:
        ResultError: no results, or results of other images, predictions or OOD sets than the first.
    """
    path = Path(path)
    if not results:
        raise ResultError(f"{path}: there are no results to write; expected at least one")
    names = list(results)
    first = results[names[0]]
    for name in names[1:]:
        _check_same(names[0], first, name, results[name])
    with_percentiles = [name for name in names if first.images and _has_percentiles(results[name])]
    head = [
        *COLUMNS,
        *(f"{SCORE}{name}" for name in names),
        *(f"{PERCENTILE}{name}" for name in with_percentiles),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        # Names of files can be in other encodings: they are kept as they are.
        with beside.open("x", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            for side, key in _sets(first):
                writer.writerows(
                    _rows(side, key, [results[name] for name in names], with_percentiles, results)
                )
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return path


def _has_percentiles(result: Result) -> bool:
    return all(known.percentiles is not None for known in result.images.values())


def _sets(result: Result) -> Iterator[tuple[str, str]]:
    yield "id", "id"
    yield from (("near", name) for name in result.near)
    yield from (("far", name) for name in result.far)


def _check_same(name: str, first: Result, other_name: str, other: Result) -> None:
    def differ(a: PerImage, b: PerImage) -> bool:
        same = a.paths == b.paths and np.array_equal(a.labels, b.labels)
        return not (same and np.array_equal(a.predictions, b.predictions))

    if list(_sets(first)) != list(_sets(other)) or any(
        differ(known, other.images[key]) for key, known in first.images.items()
    ):
        raise ResultError(
            f"{other_name}: its images, OOD sets or predicted classes are not those of {name}; expected results of one "
            "network (in one precision) on the same images"
        )


def _rows(
    side: str,
    key: str,
    all_of: Sequence[Result],
    with_percentiles: Sequence[str],
    results: Mapping[str, Result],
) -> Iterator[list[str]]:
    first = all_of[0]
    scores = [result.scores[key].tolist() for result in all_of]
    count = len(scores[0])
    none = np.full(count, -1)
    known = first.images.get(key) or PerImage(none, none)
    paths = [os.path.abspath(path) for path in known.paths] or [""] * count
    percentiles = [np.asarray(results[name].images[key].percentiles).tolist() for name in with_percentiles]
    for row in range(count):
        label, prediction = int(known.labels[row]), int(known.predictions[row])
        yield [
            key,
            side,
            paths[row],
            "" if label < 0 else str(label),
            "" if prediction < 0 else str(prediction),
            first.classes[prediction] if 0 <= prediction < len(first.classes) else "",
            *(repr(float(column[row])) for column in (*scores, *percentiles)),
        ]


def read(path: str | Path) -> dict[str, Scores]:
    """The scores of every method in an ``images.csv``, by its name there, with what is known of each image.

    Paths begin at the CSV's folder, where they are not absolute.

    Raises:
        ResultError: it is not such a file; names line and column.
    """
    path = Path(path)
    sets: dict[tuple[str, str], list[list[str]]] = {}
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            methods = _methods(path, next(reader, []))
            width = len(COLUMNS) + sum(map(len, methods.values()))
            for cells in reader:
                if len(cells) != width:
                    raise ResultError(
                        f"{path}, line {reader.line_num}: {len(cells)} columns; expected {width}"
                    )
                sets.setdefault((cells[1], cells[0]), []).append(cells)
    except (OSError, csv.Error) as error:
        raise ResultError(f"{path}: cannot be read as a CSV file: {error}") from error
    _check_sets(path, list(sets))
    classes: dict[int, str] = {}
    known = {key: _known(path, rows, classes) for (_, key), rows in sets.items()}
    return {name: _scores(path, name, columns, sets, known, classes) for name, columns in methods.items()}


def _methods(path: Path, head: list[str]) -> dict[str, dict[str, int]]:
    """Of each method, which column has its scores and, perhaps, which its percentiles."""
    methods: dict[str, dict[str, int]] = {}
    fits = tuple(head[: len(COLUMNS)]) == COLUMNS and len({*head}) == len(head)
    for place, column in enumerate(head[len(COLUMNS) :], len(COLUMNS)):
        for start in (SCORE, PERCENTILE):
            if column.startswith(start) and is_name(name := column.removeprefix(start)):
                methods.setdefault(name, {})[start] = place
                break
        else:
            fits = False
    if not (fits and methods and all(SCORE in columns for columns in methods.values())):
        raise ResultError(
            f"{path}, line 1: the header is {shortened(','.join(head))!r}; expected {','.join(COLUMNS)}, then "
            f"{SCORE}NAME for each method and perhaps {PERCENTILE}NAME"
        )
    return methods


def _check_sets(path: Path, found: list[tuple[str, str]]) -> None:
    names = [name for _, name in found]
    for side, name in found:
        if side not in _SIDES or not is_name(name) or name in AVERAGES or (side == "id") != (name == "id"):
            raise ResultError(
                f"{path}: the set {shortened(name)!r} on the side {shortened(side)!r}; expected the set id on the side id, "
                "and names of OOD sets on the sides near and far"
            )
        if names.count(name) > 1:
            raise ResultError(f"{path}: the set {name!r} is on several sides; expected one")
    if "id" not in names or len(names) < 2:
        raise ResultError(
            f"{path}: the sets are {shortened(str(names))}; expected id and at least one OOD set"
        )


def _known(path: Path, rows: list[list[str]], classes: dict[int, str]) -> PerImage:
    """What is known of a set's images; the names of classes are noted."""
    labels, predictions = (np.array([_class(path, row[place]) for row in rows], np.int64) for place in (3, 4))
    classes.update(
        {int(number): row[5] for number, row in zip(predictions, rows, strict=True) if number >= 0 and row[5]}
    )
    paths = tuple(row[2] and os.path.join(path.parent, row[2]) for row in rows)
    return PerImage(
        labels, predictions, *((paths, "") if all(paths) else ((), f"{path.name} tells no files"))
    )


def _class(path: Path, text: str) -> int:
    if not text:
        return -1
    if not (text.isascii() and text.isdecimal() and len(text) < 18):
        raise ResultError(f"{path}: the class {shortened(text)!r}; expected a whole number, or nothing")
    return int(text)


def _scores(
    path: Path,
    name: str,
    columns: Mapping[str, int],
    sets: Mapping[tuple[str, str], list[list[str]]],
    known: Mapping[str, PerImage],
    classes: Mapping[int, str],
) -> Scores:
    sides: dict[str, dict[str, np.ndarray]] = {side: {} for side in _SIDES}
    images = {}
    for (side, key), rows in sets.items():
        sides[side][key] = finite(_numbers(path, [row[columns[SCORE]] for row in rows], f"{SCORE}{name}"))
        images[key] = known[key]
        if PERCENTILE in columns:
            percentiles = _numbers(path, [row[columns[PERCENTILE]] for row in rows], f"{PERCENTILE}{name}")
            images[key] = replace(known[key], percentiles=percentiles)
    of_known = known["id"]
    right = of_known.labels == of_known.predictions
    accuracy = None if (of_known.labels < 0).any() else 100 * float(right.mean())
    return Scores(sides["id"]["id"], sides["near"], sides["far"], accuracy, images, classes, str(path.parent))


def _numbers(path: Path, texts: list[str], column: str) -> np.ndarray:
    try:
        found = np.array([float(text) for text in texts])
    except ValueError as error:
        raise ResultError(f"{path}, column {column}: {error}; expected a number for each image") from error
    if any(map(math.isnan, found)):
        raise ResultError(f"{path}, column {column}: NaN; expected a number for each image")
    return found

"""``images.csv``: a row for each image, with what every method says of it; written of results, and read again."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from ..evaluation.per_image import PerImage
from ..files import replacing
from .names import AVERAGES
from .scores import Scores, finite
from .text import is_name, shortened

if TYPE_CHECKING:
    from ..evaluation.result import Result

NAME = "images.csv"
COLUMNS = ("set", "side", "path", "label", "prediction", "class")
"""What stands before the methods' columns: the set's name (``id`` of the known images); ``id``, ``near`` or ``far``; the
file; its class, where it is known; the predicted class, and its name where that is known."""
SCORE, PERCENTILE, PREDICTION = "score_", "percentile_", "prediction_"
"""What the methods' columns begin with: the score; of AdaSCALE also the adaptive percentile, in percent; and the predicted
class, of a method by which it is another."""
_SIDES = ("id", "near", "far")


def write(results: Mapping[str, Result], path: str | Path) -> Path:
    """Write a row for each test image, the known ones first.

    Args:
        results: by method, as ``evaluate`` gives them.
        path: of the CSV; its folder is made.

    Raises:
        ResultError: no results, or results of other images or OOD sets than the first.
    """
    path = Path(path)
    if not results:
        raise ResultError(f"{path}: there are no results to write; expected at least one")
    names = list(results)
    first = results[names[0]]
    for name in names[1:]:
        _check_same(names[0], first, name, results[name])
    columns = _columns(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Names of files can be in other encodings: they are kept as they are.
    with (
        replacing(path) as beside,
        beside.open("x", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *columns])
        for side, key in _sets(first):
            writer.writerows(_rows(side, key, first, [values(key) for values in columns.values()]))
    return path


def _columns(results: Mapping[str, Result]) -> dict[str, Callable[[str], list[str]]]:
    """The methods' columns: of each, what gives its cells for a set."""
    columns: dict[str, Callable[[str], list[str]]] = {}
    first = next(iter(results.values())).images
    for name, result in results.items():
        columns[f"{SCORE}{name}"] = partial(_score_cells, result)
    for name, result in results.items():
        known = result.images
        if known and all(each.percentiles is not None for each in known.values()):
            columns[f"{PERCENTILE}{name}"] = partial(_percentile_cells, result)
        if any(not np.array_equal(each.predictions, first[key].predictions) for key, each in known.items()):
            columns[f"{PREDICTION}{name}"] = partial(_prediction_cells, result)
    return columns


def _score_cells(result: Result, key: str) -> list[str]:
    return _numbers_as_text(result.scores[key])


def _percentile_cells(result: Result, key: str) -> list[str]:
    return _numbers_as_text(result.images[key].percentiles)


def _prediction_cells(result: Result, key: str) -> list[str]:
    return _classes_as_text(result.images[key].predictions)


def _numbers_as_text(values: Any) -> list[str]:
    return [repr(float(value)) for value in np.asarray(values).tolist()]


def _classes_as_text(values: np.ndarray) -> list[str]:
    return ["" if value < 0 else str(value) for value in values.tolist()]


def _sets(result: Result) -> Iterator[tuple[str, str]]:
    yield "id", "id"
    yield from (("near", name) for name in result.near)
    yield from (("far", name) for name in result.far)


def _check_same(name: str, first: Result, other_name: str, other: Result) -> None:
    """Images are told apart by their files; where these are not known, by how many they are and their labels."""

    def differ(a: PerImage, b: PerImage) -> bool:
        if a.paths or b.paths:
            return a.paths != b.paths
        known = (a.labels >= 0).all() and (b.labels >= 0).all()
        return len(a) != len(b) or bool(known and not np.array_equal(a.labels, b.labels))

    if (
        list(_sets(first)) != list(_sets(other))
        or {*first.images} != {*other.images}
        or any(differ(known, other.images[key]) for key, known in first.images.items())
        or any(len(scores) != len(other.scores[key]) for key, scores in first.scores.items())
    ):
        raise ResultError(
            f"{other_name}: its images or OOD sets are not those of {name}; expected results on the same images"
        )


def _rows(side: str, key: str, first: Result, columns: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    count = len(first.scores[key])
    none = np.full(count, -1)
    known = first.images.get(key) or PerImage(none, none)
    paths = [os.path.abspath(path) for path in known.paths] or [""] * count
    labels, predictions = _classes_as_text(known.labels), _classes_as_text(known.predictions)
    for row, prediction in enumerate(known.predictions.tolist()):
        name = first.classes[prediction] if 0 <= prediction < len(first.classes) else ""
        own = (column[row] for column in columns)
        yield [key, side, paths[row], labels[row], predictions[row], name, *own]


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
    """Of each method, which column has its scores and, perhaps, which its percentiles and predictions."""
    methods: dict[str, dict[str, int]] = {}
    fits = tuple(head[: len(COLUMNS)]) == COLUMNS and len({*head}) == len(head)
    for place, column in enumerate(head[len(COLUMNS) :], len(COLUMNS)):
        for start in (SCORE, PERCENTILE, PREDICTION):
            if column.startswith(start) and is_name(name := column.removeprefix(start)):
                methods.setdefault(name, {})[start] = place
                break
        else:
            fits = False
    if not (fits and methods and all(SCORE in columns for columns in methods.values())):
        raise ResultError(
            f"{path}, line 1: the header is {shortened(','.join(head))!r}; expected {','.join(COLUMNS)}, then "
            f"{SCORE}NAME for each method, and perhaps {PERCENTILE}NAME or {PREDICTION}NAME"
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
            images[key] = replace(images[key], percentiles=percentiles)
        if PREDICTION in columns:
            predictions = np.array([_class(path, row[columns[PREDICTION]]) for row in rows], np.int64)
            images[key] = replace(images[key], predictions=predictions)
    of_known = known["id"]  # the network's own predictions: accuracy is the plain network's
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

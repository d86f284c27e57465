"""The result tables that OpenOOD writes, and this package in the same form.

Three formats, all in percent: ``eval_ood.py`` writes ``mean ± std`` over the runs s*,
``eval_ood_imagenet.py`` plain numbers (this package writes both), and ``main.py`` appends one block to its
``ood.csv`` on every run.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ..errors import ResultError
from ..metrics import COLUMNS
from .files import is_regular, not_regular
from .names import AVERAGES, canonical_set
from .text import is_name, shortened

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CELL = re.compile(rf"\s*({_NUMBER})\s*(?:±\s*({_NUMBER}|nan)\s*)?")
_LONGEST_CELL = 60  # the expression takes quadratic time on a cell that only nearly is a number


@dataclass(frozen=True)
class ResultTable:
    """One evaluation, or the mean of several."""

    near: tuple[str, ...]
    far: tuple[str, ...]
    mean: pd.DataFrame
    """Rows: OOD sets and averages, columns: OpenOOD's metrics, in percent; NaN: unknown."""
    std: pd.DataFrame
    """Over the runs; NaN for a single one."""
    source: Path | None = None
    """The CSV that it was read from."""
    kind: str = ""
    """Who wrote the CSV, in words."""
    notes: tuple[str, ...] = ()

    def value(self, row: str, metric: str) -> tuple[float, float]:
        """Mean and standard deviation, percent."""
        if row not in self.mean.index:
            return math.nan, math.nan
        mean: Any = self.mean.loc[row, metric]
        std: Any = self.std.loc[row, metric]
        return float(mean), float(std)


class _Row(NamedTuple):
    line: int
    name: str
    mean: list[float]
    std: list[float]


def is_result_file(path: Path) -> bool:
    """Whether the first line is (or starts like) the header of one of OpenOOD's result tables."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line = file.readline(4096)  # a foreign file may be a single line of gigabytes
    try:
        header = next(csv.reader([line]), [])
    except csv.Error:
        return False
    return [cell.strip() for cell in header[1:3]] == list(COLUMNS[:2])


def find_tables(folder: Path) -> tuple[list[Path], list[Path], list[str]]:
    """The result tables below a folder, the other CSVs there, and notes on what is called so but is no file.

    Copies in ``leaderboard/`` are left out. What cannot be opened is among the tables: it may be one, and who
    reads it is told why it cannot be.
    """
    tables: list[Path] = []
    others: list[Path] = []
    notes: list[str] = []
    for path in sorted(folder.rglob("*.csv")):
        if "leaderboard" in path.relative_to(folder).parts:
            continue
        if not is_regular(path):
            notes.append(not_regular(path))
            continue
        try:
            group = tables if is_result_file(path) else others
        except OSError:
            group = tables
        group.append(path)
    return tables, others, notes


def read_table(path: str | Path) -> ResultTable:
    """Read one of OpenOOD's result CSVs.

    Raises :class:`~openood_adascale.errors.ResultError`, naming file, line and column, if the file is none of the
    known formats.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultError(f"{path}: cannot be read as a UTF-8 CSV file: {error}") from error
    header = [cell.strip() for cell in lines[0][1]] if lines else []
    if header[1:] != list(COLUMNS) or header[0] not in ("", "dataset"):
        raise ResultError(
            f"{path}, line 1: the header is {shortened(','.join(header))!r}; expected ',{','.join(COLUMNS)}' "
            f"(eval_ood.py, eval_ood_imagenet.py) or 'dataset,{','.join(COLUMNS)}' (main.py)"
        )
    rows = [_parse(path, number, cells) for number, cells in lines[1:]]
    notes: tuple[str, ...] = ()
    if header[0] == "dataset":
        kind = "main.py"
        rows, notes = _last_run(path, rows)
    elif any(not math.isnan(value) for row in rows for value in row.std):
        kind = "eval_ood.py, mean ± std over its runs"
    else:
        kind = "a single run"
    near, far = _sides(path, rows)
    names = [row.name for row in rows]
    mean = pd.DataFrame([row.mean for row in rows], index=names, columns=list(COLUMNS))
    std = pd.DataFrame([row.std for row in rows], index=names, columns=list(COLUMNS))
    return ResultTable(near, far, mean, std, path, kind, notes)


def _parse(path: Path, number: int, cells: list[str]) -> _Row:
    if len(cells) != 1 + len(COLUMNS):
        raise ResultError(f"{path}, line {number}: {len(cells)} columns; expected {1 + len(COLUMNS)}")
    mean, std = [], []
    for column, cell in zip(COLUMNS, cells[1:], strict=True):
        match = _CELL.fullmatch(cell) if len(cell) <= _LONGEST_CELL else None
        unknown = column not in ("FPR@95", "AUROC") and re.fullmatch(r"(nan)?( ± nan)?", cell.strip())
        in_range = match is not None and 0 <= float(match[1]) <= 100
        # A standard deviation of one run may be NaN.
        if not unknown and not (in_range and match and not (match[2] and not 0 <= float(match[2]) <= 100)):
            raise ResultError(
                f"{path}, line {number}, column {column}: {shortened(cell)!r}; "
                "expected a percentage from 0 to 100, such as '84.42' or '84.42 ± 0.33'"
            )
        mean.append(float(match[1]) if match else math.nan)
        std.append(float(match[2]) if match and match[2] else math.nan)
    return _Row(number, cells[0].strip(), mean, std)


def _last_run(path: Path, rows: list[_Row]) -> tuple[list[_Row], tuple[str, ...]]:
    """The last complete block of an appended ood.csv: from its final 'farood' back to a name seen already."""
    ends = [index for index, row in enumerate(rows) if row.name == "farood"]
    start = end = ends[-1] if ends else -1
    seen: set[str] = set()
    while start >= 0 and rows[start].name not in seen:
        seen.add(rows[start].name)
        start -= 1
    block = rows[start + 1 : end + 1]
    if "nearood" not in seen:
        raise ResultError(
            f"{path}: no complete run; expected rows of near OOD sets, 'nearood', far OOD sets, 'farood', "
            f"found {shortened(str([row.name for row in rows]))}"
        )
    note = f"{len(ends)} complete run(s) in this file: the last one (lines {block[0].line}–{block[-1].line}) is used"
    if end + 1 < len(rows):
        note += f"; an unfinished run from line {rows[end + 1].line} on is ignored"
    return block, (note,)


def _sides(path: Path, rows: list[_Row]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The near and the far OOD sets of a table's rows, if those are as OpenOOD orders them."""
    _check_names(path, rows)
    names = [row.name for row in rows]
    order = "near OOD sets, 'nearood', far OOD sets, 'farood'"
    lines = {row.name: row.line for row in rows}
    if "nearood" in names and "farood" in names[: names.index("nearood")]:
        raise ResultError(f"{path}, line {lines['farood']}: 'farood' before 'nearood'; expected {order}")
    split = names.index("nearood") + 1 if "nearood" in names else 0
    near, rest = names[: max(split - 1, 0)], names[split:]
    far = rest[: rest.index("farood")] if "farood" in rest else []
    for average, sets in (("nearood", near), ("farood", far)):
        if average in names and not sets:
            raise ResultError(
                f"{path}, line {lines[average]}: {average!r}, the average over the rows above it, has none; "
                f"expected {order}"
            )
    if not near and not far:
        raise ResultError(f"{path}: the rows are {shortened(str(names))}; expected {order}")
    if rest and rest[-1] != "farood":
        raise ResultError(
            f"{path}, line {rows[-1].line}: the last row is {shortened(rest[-1])!r}; expected 'farood'"
        )
    return tuple(near), tuple(far)


def _check_names(path: Path, rows: list[_Row]) -> None:
    """Each row is a set or average of its own."""
    counts = Counter(row.name for row in rows)
    spellings: dict[str, str] = {}
    for row in rows:
        where, name = f"{path}, line {row.line}", row.name
        if not is_name(name):
            raise ResultError(
                f"{where}: the row {shortened(name)!r}; expected the name of an OOD set, as text"
            )
        if counts[name] > 1:
            raise ResultError(f"{where}: the row {shortened(name)!r} is there {counts[name]} times")
        known = canonical_set(name)
        if known.replace("_", "") in AVERAGES and name not in AVERAGES:
            raise ResultError(f"{where}: the row {name!r}; expected {known.replace('_', '')!r} of an average")
        if known in spellings:
            raise ResultError(
                f"{where}: the rows {spellings[known]!r} and {name!r} are one OOD set; expected it once"
            )
        spellings[known] = name

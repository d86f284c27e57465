"""Result tables as OpenOOD writes them, in percent.

``eval_ood.py`` writes ``mean ± std`` over training runs, ``eval_ood_imagenet.py`` plain numbers, and ``main.py``
appends one block per run to its ``ood.csv``.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..errors import ResultError
from ..io import replacing
from ..metrics import COLUMNS
from .names import AVERAGES, canonical_set, is_name, shortened

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CELL = re.compile(rf"\s*({_NUMBER})\s*(?:±\s*({_NUMBER}|nan)\s*)?")
_LONGEST_CELL = 60  # the expression takes quadratic time on a cell that is nearly a number
_ORDER = "near OOD sets, 'nearood', far OOD sets, 'farood'"


@dataclass(frozen=True)
class ResultTable:
    """One evaluation, or the mean of several training runs."""

    near: tuple[str, ...]
    far: tuple[str, ...]
    mean: pd.DataFrame
    """Rows: OOD sets and averages; columns :data:`~openood_adascale.metrics.COLUMNS` in percent, NaN if unknown."""
    std: pd.DataFrame | None = None
    """Standard deviation over training runs, if there are several."""
    kind: str = ""
    """The script that wrote it."""
    notes: tuple[str, ...] = ()


def table_of(
    rows: Mapping[str, Mapping[str, float]], near: Sequence[str], far: Sequence[str]
) -> pd.DataFrame:
    """Return a result table from metrics by OOD set, with the averages ``nearood`` and ``farood``."""
    known = pd.DataFrame.from_dict(dict(rows), orient="index").reindex(columns=list(COLUMNS))
    parts = []
    for average, names in zip(AVERAGES, (near, far), strict=True):
        if names:
            part = known.reindex(names).astype(float)
            parts += [part, part.mean(skipna=False).to_frame(average).T]
    return pd.concat(parts)


def save_csv(
    tables: pd.DataFrame | Sequence[pd.DataFrame], path: str | Path, std: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Write a table in OpenOOD's format and return the written text.

    Args:
        tables: One evaluation (two decimals, as ``eval_ood_imagenet.py``), or one per training run (``mean ± std``
            over the runs, as ``eval_ood.py``).
        path: Of the CSV; its folder is created.
        std: Standard deviations of a single table that is a mean already.

    Raises:
        ValueError: If there is no table, or if one has other rows or columns than the first.
    """
    if isinstance(tables, pd.DataFrame):
        mean = tables
    elif not tables:
        raise ValueError("tables: []; expected one per training run")
    else:
        mean, std = mean_and_std(tables)
    text = mean.map("{:.2f}".format)
    if std is not None:
        text = text + std.map(" ± {:.2f}".format)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        text.to_csv(beside)
    return text


def mean_and_std(tables: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return mean and population standard deviation over tables, matched by row and column names.

    Raises:
        ValueError: If a table has other rows or columns than the first.
    """
    first = tables[0]
    for number, table in enumerate(tables):
        if {*table.index} != {*first.index} or {*table.columns} != {*first.columns}:
            raise ValueError(
                f"tables[{number}]: rows {list(table.index)} and columns {list(table.columns)}; expected those of the "
                f"first, {list(first.index)} and {list(first.columns)}"
            )
    stacked = np.stack([table.loc[first.index, first.columns].to_numpy(float) for table in tables])
    mean, std = (pd.DataFrame(part, first.index, first.columns) for part in (stacked.mean(0), stacked.std(0)))
    return mean, std


def find_tables(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the result tables below a folder, and a note for each CSV that cannot be read."""
    tables, notes = [], []
    for path in sorted(folder.rglob("*.csv")):
        try:
            if not path.is_file():  # a pipe would block
                notes.append(f"{path}: not a regular file")
                continue
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                head = file.readline(4096).split(",")  # another CSV may be one line of gigabytes
        except OSError as error:
            notes.append(f"{path}: {error.strerror}")
        else:
            if [cell.strip() for cell in head[1:3]] == list(COLUMNS[:2]):
                tables.append(path)
    return tables, notes


class _Row(NamedTuple):
    line: int
    name: str
    mean: list[float]
    std: list[float]


def read_table(path: str | Path) -> ResultTable:
    """Read one of OpenOOD's result CSVs.

    Raises:
        ResultError: If the file has none of the three formats; names file, line and column.
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
    rows = [_parse(path, line, cells) for line, cells in lines[1:]]
    kind, notes = "a single training run", tuple[str, ...]()
    if header[0] == "dataset":
        kind, (rows, notes) = "main.py", _last_block(path, rows)
    near, far = _sides(path, rows)
    names = [row.name for row in rows]
    mean, std = (
        pd.DataFrame(part, names, list(COLUMNS)) for part in zip(*[row[2:] for row in rows], strict=True)
    )
    if std.isna().all(axis=None):
        return ResultTable(near, far, mean, None, kind, notes)
    return ResultTable(near, far, mean, std, "eval_ood.py, mean ± std over training runs", notes)


def _parse(path: Path, line: int, cells: list[str]) -> _Row:
    if len(cells) != 1 + len(COLUMNS):
        raise ResultError(f"{path}, line {line}: {len(cells)} columns; expected {1 + len(COLUMNS)}")
    row = _Row(line, cells[0].strip(), [], [])
    for column, cell in zip(COLUMNS, cells[1:], strict=True):
        match = _CELL.fullmatch(cell) if len(cell) <= _LONGEST_CELL else None
        mean, std = (float(part or "nan") for part in match.groups()) if match else (math.nan, math.nan)
        # Other columns may be empty; the standard deviation of one training run may be NaN.
        optional = column not in COLUMNS[:2] and re.fullmatch(r"(nan)?( ± nan)?", cell.strip())
        if not (optional or (0 <= mean <= 100 and not (std < 0 or std > 100))):
            raise ResultError(
                f"{path}, line {line}, column {column}: {shortened(cell)!r}; "
                "expected a percentage from 0 to 100, such as '84.42' or '84.42 ± 0.33'"
            )
        row.mean.append(mean)
        row.std.append(std)
    return row


def _last_block(path: Path, rows: list[_Row]) -> tuple[list[_Row], tuple[str, ...]]:
    """Return the last complete block of main.py's file, from its last 'farood' back to a repeated name."""
    ends = [place for place, row in enumerate(rows) if row.name == "farood"]
    start = end = ends[-1] if ends else -1
    seen: set[str] = set()
    while start >= 0 and rows[start].name not in seen:
        seen.add(rows[start].name)
        start -= 1
    if "nearood" not in seen:
        names = shortened(str([row.name for row in rows]))
        raise ResultError(f"{path}: no complete run; expected rows of {_ORDER}, found {names}")
    block = rows[start + 1 : end + 1]
    note = f"{len(ends)} complete run(s); the last one is used (lines {block[0].line}–{block[-1].line})"
    if end + 1 < len(rows):
        note += f"; the unfinished run from line {rows[end + 1].line} on is ignored"
    return block, (note,)


def _sides(path: Path, rows: list[_Row]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the near and far OOD sets of a table's rows."""
    spellings: dict[str, str] = {}
    sides: dict[str, tuple[str, ...]] = {}
    waiting: list[str] = []
    for line, name, *_ in rows:
        where, known = f"{path}, line {line}", canonical_set(name)
        if not is_name(name) or name == "id" or (known.replace("_", "") in AVERAGES and name not in AVERAGES):
            raise ResultError(f"{where}: the row {shortened(name)!r}; expected {_ORDER}")
        if known in spellings:
            raise ResultError(
                f"{where}: the row {name!r} is there twice ({spellings[known]!r}); expected it once"
            )
        spellings[known] = name
        if name not in AVERAGES:
            waiting.append(name)
        elif not waiting or (name == "nearood" and "farood" in sides):
            raise ResultError(f"{where}: {name!r} is out of place; expected {_ORDER}")
        else:
            sides[name], waiting = tuple(waiting), []
    if waiting or not sides:
        last = shortened(waiting[-1]) if waiting else ""
        raise ResultError(f"{path}: the last row is {last!r}; expected {_ORDER}")
    return sides.get("nearood", ()), sides.get("farood", ())

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
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..errors import ResultError
from ..io import replacing
from ..metrics import COLUMNS
from .names import AVERAGES, canonical_set, is_name, shortened

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


def one_decimal(percent: float) -> str:
    """Format a percentage with one decimal, rounded half up from the two that the tables show: 90.35 is 90.4."""
    return str(Decimal(f"{percent:.2f}").quantize(Decimal("0.1"), ROUND_HALF_UP))


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
    stacked = np.stack([table.reindex_like(first).to_numpy(float) for table in tables])
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
    rows, notes = [_parse(path, line, cells) for line, cells in lines[1:]], tuple[str, ...]()
    if header[0] == "dataset":
        rows, notes = _last_run(path, rows)
    names: dict[str, str] = {}
    for row in rows:
        where, known = f"{path}, line {row.line}", canonical_set(row.name)
        average = known.replace("_", "") in AVERAGES and row.name not in AVERAGES
        if average or not is_name(row.name) or row.name == "id":
            raise ResultError(f"{where}: the row {shortened(row.name)!r}; expected {_ORDER}")
        if known in names:
            raise ResultError(
                f"{where}: the row {row.name!r} is there twice ({names[known]!r}); expected it once"
            )
        names[known] = row.name
    order = list(names.values())
    # s: a set, N: nearood, F: farood
    found = re.fullmatch(
        "(s+N)?(s+F)?", "".join({"nearood": "N", "farood": "F"}.get(one, "s") for one in order)
    )
    if not found or not order:
        raise ResultError(f"{path}: the rows are {shortened(', '.join(order))!r}; expected {_ORDER}")
    near, far = (tuple(order[found.start(side) : found.end(side) - 1]) for side in (1, 2))
    mean, std = (pd.DataFrame([row[part] for row in rows], order, list(COLUMNS)) for part in (2, 3))
    return ResultTable(near, far, mean, None if std.isna().all(axis=None) else std, notes)


def _parse(path: Path, line: int, cells: list[str]) -> _Row:
    if len(cells) != 1 + len(COLUMNS):
        raise ResultError(f"{path}, line {line}: {len(cells)} columns; expected {1 + len(COLUMNS)}")
    row = _Row(line, cells[0].strip(), [], [])
    for column, cell in zip(COLUMNS, cells[1:], strict=True):
        mean, std = (part.strip() or "nan" for part in (*cell.split("±", 1), "")[:2])
        try:
            row.mean.append(float(mean))
            row.std.append(float(std))
            # Other columns may be empty; the standard deviation of one training run may be NaN.
            optional = column not in COLUMNS[:2] and math.isnan(row.mean[-1])
            valid = (optional or 0 <= row.mean[-1] <= 100) and not (row.std[-1] < 0 or row.std[-1] > 100)
        except ValueError:
            valid = False
        if not valid:
            raise ResultError(
                f"{path}, line {line}, column {column}: {shortened(cell)!r}; "
                "expected a percentage from 0 to 100, such as '84.42' or '84.42 ± 0.33'"
            )
    return row


def _last_run(path: Path, rows: list[_Row]) -> tuple[list[_Row], tuple[str, ...]]:
    """Return the rows of the last complete run in main.py's file: from the last 'farood' back to a repeated name."""
    ends = [place for place, row in enumerate(rows, 1) if row.name == "farood"]
    last: dict[str, _Row] = {}
    for row in reversed(rows[: ends[-1]] if ends else []):
        if row.name in last:
            break
        last[row.name] = row
    if "nearood" not in last:
        names = shortened(str([row.name for row in rows]))
        raise ResultError(f"{path}: no complete run; expected rows of {_ORDER}, found {names}")
    found = list(last.values())[::-1]
    note = f"{len(ends)} complete run(s); the last one is used (lines {found[0].line}–{found[-1].line})"
    if ends[-1] < len(rows):
        note += f"; the unfinished run from line {rows[ends[-1]].line} on is ignored"
    return found, (note,)

"""Hyperparameter searches: tables of candidates, as CSV, in pickled postprocessors, or in memory."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import ResultError
from .text import is_name
from .unpickling import PickledPostprocessor, PostprocessorUnpickler, as_array

_LARGEST_MAP = 60  # percentiles to a side
_NUMBER = r"(?<![\w.])\d+\.?\d*(?:[eE][-+]?\d+)?"  # also inside np.float64(…)


@dataclass(frozen=True)
class Search:
    """What a search tried."""

    candidates: pd.DataFrame
    """A row per candidate: its settings and ``auroc``, in percent."""

    @classmethod
    def checked(cls, table: pd.DataFrame, source: str | Path) -> Search:
        """Of a table from anywhere: columns p_min and p_max, if any, and ``auroc`` are numbers.

        A column ``percentile`` of pairs becomes p_min and p_max; one of single numbers stays what it is.
        Raises :class:`~openood_adascale.errors.ResultError`, which names ``source``.
        """
        table = table.map(_countable)
        try:
            if "p_min" not in table and "percentile" in table:
                pairs = table["percentile"].astype(str).str.findall(_NUMBER)
                if (pairs.map(len) == 2).all():
                    table = table.drop(columns="percentile")
                    table["p_min"], table["p_max"] = pairs.str[0].astype(float), pairs.str[1].astype(float)
            numbers = [name for name in ("p_min", "p_max") if name in table]
            for name in ("p_min", "p_max", "auroc") if numbers else ("auroc",):
                table[name] = pd.to_numeric(table[name])
        except (KeyError, TypeError, ValueError) as error:
            raise ResultError(
                f"{source}: not a search table: {error}; expected columns p_min, p_max (or percentile) and auroc"
            ) from error
        for name in (*numbers, "auroc"):
            if table.empty or not table[name].between(0, 100).all():
                raise ResultError(
                    f"{source}, column {name}: expected a percentage from 0 to 100 for every candidate"
                )
        return cls(table)

    def searched(self) -> list[str]:
        """The settings of which there are several values."""
        return [
            str(name) for name in self.candidates if name != "auroc" and self.candidates[name].nunique() > 1
        ]

    def percentile_map(self) -> pd.DataFrame | None:
        """The best AUROC, rows p_min and columns p_max (percentiles), NaN where nothing was tried.

        None where there are no percentiles, or too many of them to be drawn.
        """
        table = self.candidates
        if "p_min" not in table or max(table["p_min"].nunique(), table["p_max"].nunique()) > _LARGEST_MAP:
            return None
        return table.pivot_table(index="p_min", columns="p_max", values="auroc", aggfunc="max")


def read_search(path: str | Path) -> Search:
    """Read a search table; see :meth:`Search.checked` for what is in it."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: not a search table: {error}") from error
    return Search.checked(table, path)


def read_pickled_search(path: str | Path) -> Search | None:
    """The search in a ``postprocessors/<name>.pkl`` of this package.

    None where there was no search, or where the file is not of this package (nothing of it is executed).
    Raises :class:`~openood_adascale.errors.ResultError` where it is of this package and damaged, or of another
    version.
    """
    path = Path(path)
    reader = None
    try:
        with path.open("rb") as file:
            reader = PostprocessorUnpickler(file)
            kept = reader.load()
    except Exception as error:  # OpenOOD's own postprocessors, networks and all
        if isinstance(error, OSError) or (reader is not None and reader.ours):
            raise ResultError(f"{path}: not a postprocessor that can be read safely: {error}") from error
        return None
    if not isinstance(kept, PickledPostprocessor):
        return None
    search = kept.state.get("search") if isinstance(kept.state, dict) else None
    if search is None or (isinstance(search, dict) and not search):
        return None
    columns = {name: _column(values) for name, values in search.items()} if isinstance(search, dict) else {}
    if not columns or not all(is_name(name) for name in columns) or None in columns.values():
        raise ResultError(f"{path}: the search is no table; expected a list of numbers or words per setting")
    if len({len(values or ()) for values in columns.values()}) > 1:
        lengths = reprlib.repr({name: len(values or ()) for name, values in columns.items()})
        raise ResultError(f"{path}: the search's columns are of lengths {lengths}; expected a single length")
    return Search.checked(pd.DataFrame(columns), path)


def _countable(value: Any) -> Any:
    """A candidate's value as what can be told from others and counted: of a list and the like, its text."""
    return value if pd.api.types.is_scalar(value) else str(value)


def _column(values: object) -> list[float | str | None] | None:
    """A search's column as a plain list; None if it is anything else than a list of numbers and words."""
    array = as_array(values)
    if array is not None:
        values = array.tolist() if array.ndim == 1 else None
    if not isinstance(values, list):
        return None
    return values if all(value is None or isinstance(value, float | int | str) for value in values) else None

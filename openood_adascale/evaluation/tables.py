"""Result tables in OpenOOD's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..files import replacing


def save_csv(tables: pd.DataFrame | Sequence[pd.DataFrame], path: str | Path) -> pd.DataFrame:
    """Write a table in OpenOOD's format and return what was written.

    >>> table = evaluate(MSP(network), benchmark).table
    >>> written = save_csv([table, table], "ood/msp.csv")           # of two training runs
    >>> str(written["ACC"]["farood"]).endswith(" ± 0.00")
    True

    Args:
        tables: one evaluation (two decimals, as ``eval_ood_imagenet.py``), or one per training run (``mean ± std``
            over the runs, as ``eval_ood.py``).
        path: of the CSV; its folder is made.

    Raises:
        ValueError: no table, or tables with other rows or columns than the first.
    """
    if isinstance(tables, pd.DataFrame):
        text = tables.map("{:.2f}".format)
    elif not tables:
        raise ValueError("tables: there are none; expected one per training run")
    else:
        first, *others = tables
        for number, table in enumerate(others, 1):
            if {*table.index} != {*first.index} or {*table.columns} != {*first.columns}:
                raise ValueError(
                    f"tables: number {number} (counted from 0) has the rows {list(table.index)} and columns "
                    f"{list(table.columns)}; expected those of the first, {list(first.index)} and {list(first.columns)}"
                )
        # By name, not by place: a run may list its sets in another order.
        stacked = np.stack([table.loc[first.index, first.columns].to_numpy() for table in tables])
        mean, std = stacked.mean(0), stacked.std(0)
        text = first.copy().astype(object)
        for row, column in np.ndindex(mean.shape):
            text.iat[row, column] = f"{mean[row, column]:.2f} \u00b1 {std[row, column]:.2f}"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        text.to_csv(beside)
    return text

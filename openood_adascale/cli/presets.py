"""``openood-adascale presets``: the paper's hyperparameters."""

from __future__ import annotations

import argparse

from ..published import presets
from .options import describe

_COLUMNS = ["name", "variant", "dataset", "network", "percentiles", "k1", "k2", "o", "source"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options, of which there are none."""
    describe(
        parser,
        "List the paper's hyperparameters that are packaged, by the names for OpenOOD's --postprocessor NAME.",
        "openood-adascale presets | grep resnet50",
    )


def execute(options: argparse.Namespace) -> int:
    """Print the table."""
    table = presets()
    table["percentiles"] = [f"{low:g}-{high:g}" for low, high in table[["p_min", "p_max"]].to_numpy()]
    table = table.rename(columns={"k1_percent": "k1", "k2_percent": "k2"})
    print(table[_COLUMNS].to_string(index=False))
    return 0

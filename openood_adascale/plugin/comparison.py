"""Several postprocessors, one after another in one process, by one of OpenOOD's scripts."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from ..errors import ProcessLost, SettingError
from ..memory import give_back
from .names import postprocessor_methods
from .process import VARIABLE, switched_off
from .registration import tables_noted
from .script import ready_to_run, run_script

FROM_FEATURES = (
    "msp", "mls", "ebo", "gen", "klm", "temp_scaling", "gradnorm", "react", "ash", "scale", "vra", "dice", "she", "knn",
    "nnguide", "fdbd", "nci", "relation", "residual", "vim", "mds", "rmds", "cfood",
)  # fmt: skip
"""OpenOOD's postprocessors that run on any classifier and were seen to need nothing of an image but z and a."""
OPTION = "--postprocessor"


@dataclass
class Outcome:
    """What a script gave for one postprocessor."""

    name: str
    seconds: float = 0.0
    error: str = ""
    metrics: list[pd.DataFrame] = field(default_factory=list)
    """OpenOOD's tables, one for each of the script's runs."""


def chosen(named: str) -> list[str]:
    """The postprocessors that a comma-separated list names; ``all`` are this package's methods and
    :data:`FROM_FEATURES`.

    Raises:
        SettingError: an empty list.
    """
    ours = [name for name, method in postprocessor_methods().items() if name == method.name]
    names = [name.strip() for name in named.split(",") if name.strip()]
    names = [one for name in names for one in ([*FROM_FEATURES, *ours] if name == "all" else [name])]
    if not names:
        raise SettingError("--postprocessors", named, "names, separated by commas, or all")
    return list(dict.fromkeys(names))


def compare(script: Path, arguments: Sequence[str], names: Sequence[str]) -> list[Outcome]:
    """Run ``script`` with ``arguments`` once for each postprocessor; one that fails does not stop the others.

    Raises:
        SettingError: the arguments choose a postprocessor themselves, or a data set of one's own that the script cannot
            have; or this package is not to take part.
    """
    if switched_off("register"):
        raise SettingError(VARIABLE, os.environ[VARIABLE], "no 1 or register beside --postprocessors")
    for word in arguments:
        if word.partition("=")[0] == OPTION:
            raise SettingError(OPTION, word, f"no {OPTION} of the script's own beside --postprocessors")
    ready_to_run(script, arguments)
    outcomes: list[Outcome] = []
    bar = tqdm(names, desc="Postprocessors", disable=None, position=0)
    for name in bar:
        bar.set_postfix_str(name)
        print(f"openood-adascale: {name} ({len(outcomes) + 1} of {len(names)})", file=sys.stderr, flush=True)
        outcome = Outcome(name)
        outcomes.append(outcome)
        start = time.perf_counter()
        with tables_noted(outcome.metrics):
            try:
                run_script(script, [*arguments, OPTION, name])
            except SystemExit as left:
                if left.code not in (None, 0):
                    outcome.error = f"the script ended with {left.code!r}"
            except ProcessLost:
                raise
            except Exception as error:
                outcome.error = f"{type(error).__name__}: {error}"
        outcome.seconds = time.perf_counter() - start
        if outcome.error:
            print(f"openood-adascale: {name} failed: {outcome.error}", file=sys.stderr, flush=True)
        gc.collect()
        give_back()
        if len(outcomes) == 1:
            # What libraries have made by now stays anyhow, and need not be looked through after every method.
            gc.freeze()
    gc.unfreeze()
    return outcomes


def _value(table: pd.DataFrame, row: str, column: str) -> float:
    return float(table[column][row])


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line for each postprocessor, the best near-OOD AUROC first; then those that failed, with their errors."""
    rows: dict[str, Mapping[str, float]] = {}
    for outcome in outcomes:
        if not outcome.error and outcome.metrics:
            table = sum(outcome.metrics[1:], outcome.metrics[0]) / len(outcome.metrics)
            rows[outcome.name] = {
                **{f"{split} {column}": _value(table, f"{split}ood", column) for split in ("near", "far")
                   for column in ("FPR@95", "AUROC")},
                "ACC": float(table["ACC"].iloc[0]),
                "seconds": outcome.seconds,
            }  # fmt: skip
    lines = []
    if rows:
        table = pd.DataFrame.from_dict(rows, orient="index").sort_values(
            ["near AUROC", "far AUROC"], ascending=False, kind="stable"
        )
        runs = max(len(outcome.metrics) for outcome in outcomes)
        lines.append(table.to_string(float_format=lambda value: f"{value:.2f}"))
        lines.append(f"Means of {runs} run(s), in percent." if runs > 1 else "In percent.")
    for outcome in outcomes:
        if outcome.error:
            lines.append(f"{outcome.name}: failed: {outcome.error}")
        elif not outcome.metrics:
            lines.append(f"{outcome.name}: the script evaluated nothing by OpenOOD's Evaluator")
    return "\n".join(lines)

"""OpenOOD's scripts in this process: one run, or one for each of many postprocessors."""

from __future__ import annotations

import gc
import runpy
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from ..errors import SettingError
from ..features.cache import current_cache, feature_cache
from ..memory import give_back
from .config import postprocessor_methods
from .evaluator import FROM_FEATURES, collected_results
from .registration import require_registration

if TYPE_CHECKING:
    from .results import Evaluation

OPTION = "--postprocessor"


def run_script(script: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``script`` as ``python SCRIPT ARGUMENTS…`` does, and return its global variables."""
    before = sys.argv, list(sys.path)
    try:
        sys.argv = [str(script), *arguments]
        if not getattr(sys.flags, "safe_path", False):
            sys.path[0] = str(script.resolve().parent)
        return runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before


@dataclass
class Outcome:
    """Result of a script for one postprocessor."""

    name: str
    seconds: float = 0.0
    error: str = ""
    results: list[Evaluation] = field(default_factory=list)
    """One for each training run."""
    variables: dict[str, Any] = field(default_factory=dict)
    """The script's global variables."""

    @property
    def failed(self) -> bool:
        """True without a result."""
        return bool(self.error) or not self.results


def chosen_names(text: str) -> list[str]:
    """Return the postprocessors in a comma-separated list; ``all`` are this package's and :data:`FROM_FEATURES`.

    Raises:
        SettingError: An empty list.
    """
    ours = [name for name, method in postprocessor_methods().items() if name == method.name]
    names = [name.strip() for name in text.split(",") if name.strip()]
    names = [one for name in names for one in ([*FROM_FEATURES, *ours] if name == "all" else [name])]
    if not names:
        raise SettingError("--postprocessors", text, "names, separated by commas, or all")
    return list(dict.fromkeys(names))


def run_many(
    script: Path, arguments: Sequence[str], names: Sequence[str], cache_dir: str | None = None
) -> list[Outcome]:
    """Run ``script`` once for each postprocessor; one that fails does not stop the others.

    They share a feature cache, so that the network runs once over an image for all that need its features only.

    Args:
        script: A script with the option ``--postprocessor``.
        arguments: Its other arguments.
        names: The postprocessors.
        cache_dir: Directory of the cache (default: the cache in use, else a temporary directory).

    Raises:
        SettingError: The arguments name a postprocessor, or the plugin is switched off.
        CacheError: The cache cannot be used.
    """
    require_registration("--postprocessors")
    for word in arguments:
        if word.partition("=")[0] == OPTION:
            expected = f"no {OPTION} of the script itself together with --postprocessors"
            raise SettingError(OPTION, word, expected)
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        if cache_dir is None and current_cache() is None:
            cache_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="openood_adascale_"))
        stack.enter_context(feature_cache(cache_dir))
        bar = tqdm(names, desc="Postprocessors", disable=None, position=0)
        for number, name in enumerate(bar, 1):
            bar.set_postfix_str(name)
            print(f"openood-adascale: {name} ({number} of {len(names)})", file=sys.stderr, flush=True)
            outcomes.append(_run_one(script, [*arguments, OPTION, name], name))
            gc.collect()
            give_back()
    return outcomes


def _run_one(script: Path, arguments: Sequence[str], name: str) -> Outcome:
    outcome, start = Outcome(name), time.perf_counter()
    with collected_results(outcome.results):
        try:
            outcome.variables = run_script(script, arguments)
        except SystemExit as left:
            if left.code not in (None, 0):
                outcome.error = f"the script ended with {left.code!r}"
        except Exception as error:
            outcome.error = f"{type(error).__name__}: {error}"
    outcome.seconds = time.perf_counter() - start
    return outcome


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return a table with a row per postprocessor, the best near-OOD AUROC first, and the errors of those that failed."""
    rows = {}
    for outcome in outcomes:
        if not outcome.failed:
            tables = [one.result.table for one in outcome.results]
            means = (sum(tables[1:], tables[0]) / len(tables)).astype(float)
            row = {
                f"{split} {column}": means.loc[f"{split}ood", column]
                for split in ("near", "far")
                for column in ("FPR@95", "AUROC")
            }
            rows[outcome.name] = {**row, "ACC": means["ACC"].iloc[0], "seconds": outcome.seconds}
    lines = []
    if rows:
        table = pd.DataFrame.from_dict(rows, orient="index").sort_values(
            ["near AUROC", "far AUROC"], ascending=False, kind="stable"
        )
        runs = max(len(outcome.results) for outcome in outcomes)
        lines.append(table.to_string(float_format=lambda value: f"{value:.2f}"))
        lines.append(f"Means of {runs} runs, in percent." if runs > 1 else "In percent.")
    for outcome in outcomes:
        if outcome.error:
            lines.append(f"{outcome.name}: failed: {outcome.error}")
        elif not outcome.results:
            lines.append(f"{outcome.name}: the script evaluated nothing with OpenOOD's Evaluator")
    return "\n".join(lines)

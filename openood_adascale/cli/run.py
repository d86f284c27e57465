"""``openood-adascale run``: an OpenOOD script with this package registered, for one or many postprocessors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..plugin.registration import register
from .options import add_ray, chosen_pool, describe, group

_SCRIPTS = ("eval_ood.py", "eval_ood_imagenet.py")
"""OpenOOD's scripts that use its ``Evaluator``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    describe(
        parser,
        "Run a script of OpenOOD with this package registered: with torch before 2.5, with "
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0, or for many postprocessors at once, which share the network's forward "
        "passes. Exit status: 0, 1 if a postprocessor failed, 2 for an error.",
        "openood-adascale run --postprocessors msp,react,adascale \\\n      scripts/eval_ood.py --save-csv \\\n"
        "      --root results/cifar10_resnet18_32x32_base_e100_lr0.1_default",
        usage="[OPTIONS] SCRIPT [ARGUMENTS ...]",
    )
    add = group(parser)
    add("script", "script, e.g. scripts/eval_ood.py or main.py (required)", metavar="SCRIPT")
    add("arguments", "the script's own arguments", metavar="ARGUMENTS", nargs=argparse.REMAINDER)
    add(
        "--postprocessors NAMES",
        "run the script once for each of these names, separated by commas, in one process, and print a table of all; "
        "'all': this package's and OpenOOD's that need features only (default: run the script once)",
    )
    add(
        "--cache-dir DIR",
        "feature cache (default: $OPENOOD_ADASCALE_CACHE_DIR, else a temporary directory with --postprocessors and none "
        "without)",
    )
    add(
        "-o --output DIR",
        "folder for run.json, tables and the table of images, which report reads (default: the script's own results "
        "folder: eval_ood.py's --root, and that of eval_ood_imagenet.py)",
        type=Path,
    )
    add_ray(parser)


def execute(options: argparse.Namespace) -> int:
    """Run the script and return the exit status: 1 if a postprocessor failed.

    Raises:
        SettingError: No such script, or an option that cannot be used.
        CacheError: The cache cannot be used.
    """
    script = Path(options.script)
    if not script.is_file():
        raise SettingError("script", options.script, "a Python script that exists")
    register()
    from ..features.cache import feature_cache  # imports torch
    from ..plugin.evaluator import collected_results
    from ..plugin.run_many import chosen_names, run_many, run_script, summary

    with chosen_pool(options):
        if options.postprocessors is None:
            results: list[Any] = []
            with feature_cache(options.cache_dir), collected_results(results):
                variables = run_script(script, options.arguments)
            by_name: dict[str, list[Any]] = {}
            for one in results:
                by_name.setdefault(one.name, []).append(one)
            _save(by_name, script, variables, options.output)
            return 0
        names = chosen_names(options.postprocessors)
        outcomes = run_many(script, options.arguments, names, options.cache_dir)
    print(summary(outcomes))
    if done := [outcome for outcome in outcomes if not outcome.failed]:
        _save({one.name: one.results for one in done}, script, done[-1].variables, options.output)
    return int(any(outcome.failed for outcome in outcomes))


def _save(
    evaluations: dict[str, list[Any]], script: Path, variables: dict[str, Any], output: Path | None
) -> None:
    """Write the evaluations to the output folder, or to the folder ``root`` of OpenOOD's scripts.

    Raises:
        SettingError: The folder cannot be written to, or has an earlier run that cannot be read.
    """
    if output is None and script.name not in _SCRIPTS:  # another script's root may be anything
        return
    folder = output or variables.get("root")
    if not evaluations or folder is None:
        return
    from ..plugin.results import save_runs

    is_saved = output is None and variables["args"].save_csv
    try:
        paths = save_runs(evaluations, Path(folder), save_tables=not is_saved)
    except (ValueError, OSError) as error:
        raise SettingError("--output", str(folder), f"a folder for the results ({error})") from error
    for path in paths:
        print(f"results: {path}; for a report: openood-adascale report {path.parent}")

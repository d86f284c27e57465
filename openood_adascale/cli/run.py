"""``openood-adascale run``: an OpenOOD script with this package registered, for one or many postprocessors."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import SettingError
from ..plugin.registration import register
from .options import add_ray, chosen_pool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Run a script of OpenOOD with this package registered: with torch before 2.5, with "
        "TORCH_DEVICE_BACKEND_AUTOLOAD=0, or for many postprocessors at once, which share the network's forward passes."
    )
    parser.epilog = (
        "Example: openood-adascale run --postprocessors msp,react,adascale scripts/eval_ood.py "
        "--root results/cifar10_resnet18_32x32_base_e100_lr0.1_default --save-csv"
    )
    parser.add_argument(
        "--postprocessors",
        metavar="NAMES",
        help="run the script once for each of these names, separated by commas, in one process, and print a table of all; "
        "'all': this package's and OpenOOD's that need features only (default: run the script once)",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="directory of cached features (default: OPENOOD_ADASCALE_CACHE_DIR; without it, --postprocessors uses a "
        "temporary directory, and a single run caches nothing)",
    )
    add_ray(parser)
    parser.add_argument("script", help="script to run, for example scripts/eval_ood.py or main.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")


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
    from ..plugin.run_many import chosen_names, run_many, run_script, summary

    if options.postprocessors is None:
        with chosen_pool(options), feature_cache(options.cache_dir):
            run_script(script, options.arguments)
        return 0
    names = chosen_names(options.postprocessors)
    with chosen_pool(options):
        outcomes = run_many(script, options.arguments, names, options.cache_dir)
    print(summary(outcomes))
    return int(any(outcome.failed for outcome in outcomes))

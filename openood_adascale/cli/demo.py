"""``openood-adascale demo``: see :mod:`openood_adascale.demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import describe, group


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    describe(
        parser,
        "Train a small network on rendered letters, search and evaluate every method on other characters and on "
        "photos, and write a report. Needs the extra plots; downloads nothing.",
        "openood-adascale demo -o adascale-demo",
    )
    add = group(parser)
    add("-o --output DIR", "folder (default: %(default)s)", type=Path, default=Path("adascale-demo"))
    add("--seed N", "seed of data and training (default: %(default)s)", type=int, default=0)
    add("-v --verbose", "print the table of each method (default: one short table)")
    add("-q --quiet", "hide progress bars (default: shown in a terminal)")


def execute(options: argparse.Namespace) -> int:
    """Run the demo."""
    from ..demo.run import run
    from ..plugin.import_hook import keep_memory

    keep_memory()
    run(options.output, options.seed, False if options.quiet else None, bool(options.verbose))
    return 0

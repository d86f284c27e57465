"""``openood-adascale demo``: see :mod:`openood_adascale.demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..plugin.process import keep_memory, say_done
from .output import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("adascale-demo"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")


def execute(options: argparse.Namespace) -> int:
    """Run it; 2 where Matplotlib is missing."""
    try:
        from ..reporting.pictures import style  # noqa: F401  (before all that takes seconds to import)
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        complain(f"error: {error}")
        return 2
    from ..demo import run

    if keep_memory() and not options.quiet:
        say_done("freed memory is kept for the next batch", "memory")
    run(options.output, options.seed, progress=False if options.quiet else None)
    return 0

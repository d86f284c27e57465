"""``openood-adascale report``: a run's folder as one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..io import printable
from .options import add_report_options, describe, group, report_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    describe(
        parser,
        "Write index.html, report.md and figures from the folder of a run: one that evaluate, run or demo wrote "
        "(run.json), or OpenOOD's own results (ood/*.csv, fsood/*.csv, ood.csv, scores/*.pkl).",
        "openood-adascale report --reference imagenet:resnet50 \\\n"
        "      results/imagenet_resnet50_tvsv1_base_default",
    )
    add = group(parser)
    add("folder", "folder of a run (required)", metavar="FOLDER", type=Path)
    add("-o --output DIR", "output folder (default: FOLDER/report)", type=Path)
    add_report_options(parser)


def execute(options: argparse.Namespace) -> int:
    """Write the report."""
    from ..report.importers import load
    from ..report.render import write_report

    chosen = report_options(vars(options))
    print(
        printable(
            str(write_report(load(options.folder), options.output or options.folder / "report", **chosen))
        )
    )
    return 0

"""``openood-adascale report``: a run's folder as one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ResultError, SettingError
from ..report.names import shown
from .options import add_report_options, report_options
from .output import complain

EXAMPLE = """example:
  openood-adascale report results/imagenet_resnet50_tvsv1_base_default --reference imagenet:resnet50"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = (
        "Write index.html, report.md and figures from the folder of a run: one that evaluate, run or demo wrote "
        "(run.json), or OpenOOD's own results (ood/*.csv, fsood/*.csv, ood.csv, scores/*.pkl)."
    )
    parser.epilog, parser.formatter_class = EXAMPLE, argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="folder of a run (required)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="output folder (default: FOLDER/report)"
    )
    add_report_options(parser)


def execute(options: argparse.Namespace) -> int:
    """Write the report; 2 if the folder cannot be used or a library is missing."""
    try:
        from ..report.importers import load
        from ..report.render import write_report

        chosen = report_options(vars(options))
        page = write_report(load(options.folder), options.output or options.folder / "report", **chosen)
    except ImportError as error:
        if error.name not in ("matplotlib", "jinja2", "markupsafe"):
            raise
        complain(f"error: {error}")
        return 2
    except (ResultError, SettingError, OSError) as error:
        complain(f"error: {error}")
        return 2
    print(shown(str(page)))
    return 0

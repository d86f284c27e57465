"""``openood-adascale report``: a run's folder as one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ResultError, SettingError
from ..reporting.text import shown
from .options import add_pictures, pictures_chosen
from .output import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.description = (
        "Make one page, pictures, Markdown tables and leaderboard entries from a run's folder."
    )
    parser.add_argument(
        "folder", type=Path, help="a run's folder, e.g. results/imagenet_resnet50_tvsv1_base_default"
    )
    parser.add_argument("-o", "--out", type=Path, help="folder to write to (default: FOLDER/report)")
    parser.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="OpenOOD's data folder, to show images (default: data in the checkout in whose results FOLDER lies)",
    )
    add_pictures(parser)
    parser.add_argument("--training", help="leaderboard: training method (default: from the folder's name)")
    parser.add_argument(
        "--outlier-data", choices=("No", "Yes"), help="leaderboard: outliers in training (default: No)"
    )
    parser.add_argument("--arch", help="leaderboard: network (default: from the folder's name)")
    parser.add_argument(
        "--description", help="leaderboard: e.g. '100 epochs' (default: from the folder's name)"
    )


def execute(options: argparse.Namespace) -> int:
    """Write the report; 0 if written, 2 if the folder cannot be used or Matplotlib is missing."""
    try:
        from ..reporting.gather import collect
        from ..reporting.report import write
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        complain(f"error: {error}")
        return 2
    told = {
        "Training": options.training,
        "Outlier_Data": options.outlier_data,
        "Arch": options.arch,
        "Additional_Description": options.description,
    }
    entry = {name: value for name, value in told.items() if value is not None}
    try:
        run = collect(options.folder, options.data_root)
        out = options.out or options.folder / "report"
        page = write(run, out, entry, **pictures_chosen(vars(options)))
    except (ResultError, SettingError, OSError) as error:
        complain(f"error: {error}")
        return 2
    print(shown(str(page)))
    return 0

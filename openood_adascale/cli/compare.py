"""``openood-adascale compare``: OpenOOD's result files against the published figures."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ResultError
from ..reporting.compare import DEFAULT_TOLERANCE, KEYS, compare, render
from ..reporting.names import SCHEMES
from ..reporting.tables import find_tables, read_table
from .output import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.description = (
        "Compare results that OpenOOD wrote with the published figures. Exit status: 0 all within the "
        "tolerance, 1 some outside, 2 nothing comparable, or a file that cannot be used."
    )
    parser.add_argument("path", type=Path, help="a result CSV, or a folder to search for them")
    parser.add_argument("--dataset", help="in-distribution dataset, e.g. imagenet (default: from the path)")
    parser.add_argument("--network", help="network as published, e.g. resnet50 (default: from the path)")
    parser.add_argument(
        "--method", help="published or postprocessor name, e.g. AdaSCALE-A; for one file only"
    )
    parser.add_argument("--scheme", choices=SCHEMES, help="for one file only (default: from the path)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=DEFAULT_TOLERANCE,
        metavar="POINTS",
        help="largest difference that passes, in percentage points (default: %(default)s)",
    )


def execute(options: argparse.Namespace) -> int:
    """Print the comparison of every result file; see :func:`add_arguments` for the exit status."""
    told: dict[str, str | None] = {key: getattr(options, key) for key in KEYS}
    try:
        paths, left_out = _paths(options.path, told)
    except (ResultError, OSError) as error:
        complain(f"error: {error}")
        return 2
    for note in left_out:
        complain(f"left out: {note}")
    statuses, broken, unmatched = [], False, []
    for path in paths:
        try:
            read_table(path)  # a malformed file is an error even where nothing is published for it
        except ResultError as error:
            broken = True
            complain(f"error: {error}")
            continue
        try:
            comparison = compare(path, **told, tolerance=options.tolerance)
        except ResultError as error:
            unmatched.append(str(error))
            continue
        print(render(comparison), end="\n\n")
        statuses.append(comparison.status)
    for message in unmatched:
        # In a folder full of methods, those without published figures are no failure, nor worth a list each.
        complain(f"not compared: {message.partition('; ')[0]}" if statuses else f"error: {message}")
    if broken or all(status == 2 for status in statuses):
        return 2
    return int(1 in statuses)


def _paths(path: Path, told: dict[str, str | None]) -> tuple[list[Path], list[str]]:
    """The files to compare, and notes on what was left out."""
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise ResultError(f"{path}: no such file or folder; expected a result CSV or a folder with some")
    paths, others, left_out = find_tables(path)
    if not paths:
        seen = f"; {len(others)} other CSV files, e.g. {others[0].name}" if others else ""
        seen += "".join(f"; left out: {note}" for note in left_out)
        raise ResultError(f"{path}: no result CSV of OpenOOD's below this folder{seen}")
    if len(paths) > 1 and (told["method"] or told["scheme"]):
        raise ResultError(
            f"{path}: --method and --scheme are for one file; this folder has {len(paths)}: name one of them"
        )
    return paths, left_out

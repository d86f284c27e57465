"""``openood-adascale compare``: result CSVs compared with the published results."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ResultError
from ..report.names import SCHEMES
from ..report.reference import DEFAULT_TOLERANCE, KEYS, compare, comparison_text
from ..report.tables import find_tables, read_table
from .options import describe, group
from .output import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    describe(
        parser,
        "Compare result CSVs with the published results. Exit status: 0 if all are within the tolerance, 1 if some "
        "are not, 2 if nothing is comparable or a file cannot be used.",
        "openood-adascale compare \\\n      results/imagenet_resnet50_tvsv1_base_default/ood/adascale_a.csv",
    )
    add = group(parser)
    add("path", "a result CSV, or a folder with some (required)", metavar="PATH", type=Path)
    add("--dataset NAME", "ID dataset as published, e.g. imagenet (default: from the path)")
    add("--network NAME", "network as published, e.g. resnet50 (default: from the path)")
    add("--method NAME", "published name or postprocessor, for one file (default: from the path)")
    add("--scheme NAME", "ood or fsood, for one file (default: from the path)", choices=SCHEMES)
    add(
        "--tolerance POINTS",
        "largest difference that passes, in percentage points (default: %(default)s)",
        type=float,
        default=DEFAULT_TOLERANCE,
    )


def execute(options: argparse.Namespace) -> int:
    """Print the comparison of every result CSV; see :func:`add_arguments` for the exit status."""
    told: dict[str, str | None] = {key: getattr(options, key) for key in KEYS}
    statuses, broken, unmatched = [], False, []
    for path in _paths(options.path, told):
        try:
            read_table(path)  # a malformed file is an error even if nothing is published for it
        except ResultError as error:
            broken = True
            complain(f"error: {error}")
            continue
        try:
            comparison = compare(path, **told, tolerance=options.tolerance)
        except ResultError as error:
            unmatched.append(str(error))
            continue
        print(comparison_text(comparison), end="\n\n")
        statuses.append(comparison.status)
    for message in unmatched:
        # Methods without published results are no failure in a folder of many, nor worth a list each.
        complain(f"not compared: {message.partition('; ')[0]}" if statuses else f"error: {message}")
    if broken or all(status == 2 for status in statuses):
        return 2
    return int(1 in statuses)


def _paths(path: Path, told: dict[str, str | None]) -> list[Path]:
    """Return the files to compare; those that cannot be read are printed."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ResultError(f"{path}: no such file or folder; expected a result CSV or a folder with some")
    paths, left_out = find_tables(path)
    for note in left_out:
        complain(f"left out: {note}")
    if not paths:
        raise ResultError(f"{path}: no result CSVs; expected some in this folder")
    if len(paths) > 1 and (told["method"] or told["scheme"]):
        raise ResultError(f"{path}: {len(paths)} result CSVs; expected one file with --method or --scheme")
    return paths

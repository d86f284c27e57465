"""Hold a run's results against the published figures: ``openood-adascale compare``."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from . import published
from .results import (
    METHODS,
    SCHEMES,
    Identity,
    ResultError,
    ResultTable,
    canonical_set,
    find_tables,
    identify,
    read_table,
)

#: Percentage points. Table 6 of the paper moves by at most 0.08 points between 100 and 5,000 validation
#: images, and rounding, image decoding and ties cost correct programs a few hundredths: 0.5 is well above
#: that, and well below what separates AdaSCALE from the next method in Table 2 (mostly several points).
DEFAULT_TOLERANCE = 0.5

_COLUMNS = {"FPR@95": "fpr95", "AUROC": "auroc"}
_KEYS = ("dataset", "network", "method", "scheme")


@dataclass(frozen=True)
class Figure:
    """One measured percentage next to a published one; ``within`` is None where they are not comparable."""

    source: str
    ood_set: str
    metric: str
    measured: float
    std: float
    published: float
    within: bool | None

    @property
    def difference(self) -> float:
        """Measured minus published, in points."""
        return self.measured - self.published


@dataclass(frozen=True)
class Comparison:
    """A result table against every published row for the same dataset, network, method and scheme."""

    table: ResultTable
    what: dict[str, str]
    figures: list[Figure]
    notes: list[str]
    tolerance: float

    @property
    def status(self) -> int:
        """0: all comparable figures within the tolerance, 1: some outside, 2: none comparable."""
        verdicts = [figure.within for figure in self.figures if figure.within is not None]
        return 2 if not verdicts else int(not all(verdicts))


def compare(
    path: str | Path,
    *,
    dataset: str | None = None,
    network: str | None = None,
    method: str | None = None,
    scheme: str | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Comparison:
    """Compare one result CSV with what was published; what is not told is taken from the file's path.

    ``tolerance`` is in percentage points, for FPR@95 and AUROC alike. An average gets a verdict only if the
    published one is over the same OOD sets: the paper's near average also has ImageNet-O and its far average
    Places, which OpenOOD's ``nearood`` and ``farood`` lack. Raises :class:`~.results.ResultError`.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ResultError(f"tolerance: {tolerance}; expected a finite number of points, 0 or more")
    table, found = read_table(path), identify(path)
    rows, what, notes = _published_rows(
        path, found, {"dataset": dataset, "network": network, "method": method, "scheme": scheme}
    )
    figures: list[Figure] = []
    for source, group in rows.groupby("source", sort=False):
        _compare_source(table, str(source), group, tolerance, figures, notes)
    return Comparison(table, what, figures, [*table.notes, *notes], tolerance)


def _published_rows(
    path: str | Path, found: Identity, told: dict[str, str | None]
) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    notes = list(found.notes)
    rows = published.results()
    if found.training:
        note = (
            f"the folder name says {found.training!r} for how {found.network} was trained; the published "
            "figures are for OpenOOD's base training or torchvision's V1 weights"
        )
        if told["network"] is None:
            raise ResultError(f"{path}: {note}. To compare all the same, say --network")
        notes.append(note)
    what: dict[str, str] = {}
    for key in _KEYS:
        value = told[key] or getattr(found, key)
        if value is None and key == "scheme":
            value = "ood"
            notes.append("the path does not say 'ood' or 'fsood': taken as 'ood' (--scheme says otherwise)")
        if value is None and key == "dataset" and (told["network"] or found.network):
            of_network = rows[rows["network"] == (told["network"] or found.network)]["dataset"].unique()
            value = of_network[0] if len(of_network) == 1 else None
        if key == "method" and value:
            value = METHODS.get(value.lower(), value)
        allowed = sorted(rows[key].unique())
        match = next((name for name in allowed if name.lower() == str(value).lower()), None)
        if match is None:
            unknown = f"not told by the path ({found.stem!r})" if key == "method" else "not told by the path"
            context = f" for {', '.join(what.values())}" if what else ""
            # The ablations' names ("AdaSCALE-A, epsilon=0.1") are allowed too, but would bury the others.
            shown = "; ".join(name for name in allowed if "," not in name)
            raise ResultError(
                f"{path}: {key}: {repr(value) if value else unknown}; "
                f"figures are published{context} with {key} (--{key}): {shown}"
            )
        what[key], rows = match, rows[rows[key] == match]
    return rows, what, notes


def _compare_source(
    table: ResultTable,
    source: str,
    rows: pd.DataFrame,
    tolerance: float,
    figures: list[Figure],
    notes: list[str],
) -> None:
    measured_sets = {
        "near": frozenset(map(canonical_set, table.near)),
        "far": frozenset(map(canonical_set, table.far)),
    }
    measured = {canonical_set(str(name)): str(name) for name in table.mean.index}
    names = [str(name) for name in rows["ood_set"]]
    for side, average in (("near", "nearood"), ("far", "farood")):
        if f"{side}-average" in names:
            members = published.PAPER_SETS[side]
        elif average in names:
            split = names.index("nearood") if "nearood" in names else -1
            part = names[:split] if side == "near" else names[split + 1 :]
            members = frozenset(canonical_set(name) for name in part if name != "farood")
        else:
            continue
        comparable = members == measured_sets[side]
        if not comparable and average in measured:
            notes.append(
                f"{side} average: no verdict. {source.partition(' (')[0]} averages over "
                f"{', '.join(sorted(members))}; this file's {average} over "
                f"{', '.join(sorted(measured_sets[side])) or 'nothing'}"
            )
        for row in rows.to_dict("records"):
            own = row["ood_set"] in (average, f"{side}-average")
            name = measured.get(average if own else canonical_set(row["ood_set"]))
            if name is None or not (own or canonical_set(row["ood_set"]) in members):
                continue
            for metric, column in _COLUMNS.items():
                value: Any = table.mean.loc[name, metric]
                std: Any = table.std.loc[name, metric]
                # Both sides are printed to 0.01: keep binary noise from deciding at the boundary.
                within = round(abs(value - row[column]), 6) <= tolerance if comparable or not own else None
                figures.append(
                    Figure(source, name, metric, float(value), float(std), float(row[column]), within)
                )
    missing = [
        name for name in names if not name.endswith("-average") and canonical_set(name) not in measured
    ]
    if missing:
        notes.append(f"published but not in this file: {', '.join(missing)}")
    notes.extend(note for note in rows["note"].unique() if note)


def render(comparison: Comparison) -> str:
    """The comparison as text for a terminal: percentages, differences in points."""
    table, what = comparison.table, comparison.what
    lines = [str(table.path), f"  {' · '.join(what.values())}   (file: {table.kind})"]
    head = f"{'measured':>15} {'published':>9} {'diff':>7} {'':7}"
    # What has a verdict comes first; sorting is stable.
    figures = sorted(comparison.figures, key=lambda figure: figure.within is None)
    for source in dict.fromkeys(figure.source for figure in figures):
        own = [figure for figure in comparison.figures if figure.source == source]
        informative = all(figure.within is None for figure in own)
        title = "for information only, over other OOD sets" if informative else "published"
        lines += ["", f"  {title}: {source}", f"  {'':14}{'FPR@95':>15}{'':27}{'AUROC':>15}"]
        lines += [f"  {'OOD set':14}{head}  {head}".rstrip()]
        for name in dict.fromkeys(figure.ood_set for figure in own):
            cells = [_cells(figure) for figure in own if figure.ood_set == name]
            lines.append(f"  {name:14}{'  '.join(cells)}".rstrip())
    lines.append("")
    lines += [f"  Note: {note}." for note in dict.fromkeys(comparison.notes)]
    verdicts = [figure.within for figure in comparison.figures if figure.within is not None]
    if not verdicts:
        lines.append("  Verdict: nothing comparable")
    else:
        result = "all within" if all(verdicts) else f"{verdicts.count(False)} of {len(verdicts)} outside"
        lines.append(
            f"  Verdict: {result} ± {comparison.tolerance:g} points ({len(verdicts)} figures compared)"
        )
    return "\n".join(lines)


def _cells(figure: Figure) -> str:
    measured = f"{figure.measured:.2f}" + ("" if math.isnan(figure.std) else f" ± {figure.std:.2f}")
    verdict = {True: "ok", False: "OUTSIDE", None: "n/a"}[figure.within]
    return f"{measured:>15} {figure.published:9.2f} {figure.difference:+7.2f} {verdict:7}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``openood-adascale compare``."""
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


def run(args: argparse.Namespace) -> int:
    """Print the comparison of every result file; see :func:`add_arguments` for the exit status."""
    told = {key: getattr(args, key) for key in _KEYS}
    try:
        paths = _paths(args.path, told)
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    statuses, broken, unmatched = [], False, []
    for path in paths:
        try:
            read_table(path)  # a malformed file is an error even where nothing is published for it
        except ResultError as error:
            broken = True
            print(f"error: {error}", file=sys.stderr)
            continue
        try:
            comparison = compare(path, **told, tolerance=args.tolerance)
        except ResultError as error:
            unmatched.append(str(error))
            continue
        print(render(comparison), end="\n\n")
        statuses.append(comparison.status)
    for message in unmatched:
        # In a folder full of methods, those without published figures are no failure, nor worth a list each.
        said = f"not compared: {message.partition('; ')[0]}" if statuses else f"error: {message}"
        print(said, file=sys.stderr)
    if broken or all(status == 2 for status in statuses):
        return 2
    return int(1 in statuses)


def _paths(path: Path, told: dict[str, str | None]) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ResultError(f"{path}: no such file or folder; expected a result CSV or a folder with some")
    paths, others = find_tables(path)
    if not paths:
        seen = f"; {len(others)} other CSV files, e.g. {others[0].name}" if others else ""
        raise ResultError(f"{path}: no result CSV of OpenOOD's below this folder{seen}")
    if len(paths) > 1 and (told["method"] or told["scheme"]):
        raise ResultError(
            f"{path}: --method and --scheme are for one file; this folder has {len(paths)}: name one of them"
        )
    return paths

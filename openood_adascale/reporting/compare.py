"""A run's results held against the published figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .. import published
from ..errors import ResultError
from .identify import Identity, identify
from .names import PUBLISHED, canonical_set
from .tables import ResultTable, read_table
from .text import percentage, shown

DEFAULT_TOLERANCE = 0.5
"""Percentage points. Table 6 of the paper moves by at most 0.08 points between 100 and 5,000 validation images, and
rounding, image decoding and ties cost correct programs a few hundredths: 0.5 is well above that, and well below what
separates AdaSCALE from the next method in Table 2 (mostly several points).
"""

_COLUMNS = {"FPR@95": "fpr95", "AUROC": "auroc"}
KEYS = ("dataset", "network", "method", "scheme")
"""What says which published rows a table is compared with."""


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
    Places, which OpenOOD's ``nearood`` and ``farood`` lack. Raises :class:`~openood_adascale.errors.ResultError`.
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
    for key in KEYS:
        value = told[key] or getattr(found, key)
        if value is None and key == "scheme":
            value = "ood"
            notes.append("the path does not say 'ood' or 'fsood': taken as 'ood' (--scheme says otherwise)")
        if value is None and key == "dataset" and (told["network"] or found.network):
            of_network = rows[rows["network"] == (told["network"] or found.network)]["dataset"].unique()
            value = of_network[0] if len(of_network) == 1 else None
        if key == "method" and value:
            value = PUBLISHED.get(value.lower(), value)
        allowed = sorted(rows[key].unique())
        match = next((name for name in allowed if name.lower() == str(value).lower()), None)
        if match is None:
            unknown = f"not told by the path ({found.stem!r})" if key == "method" else "not told by the path"
            context = f" for {', '.join(what.values())}" if what else ""
            # The ablations' names ("AdaSCALE-A, epsilon=0.1") are allowed too, but would bury the others.
            names = "; ".join(name for name in allowed if "," not in name)
            raise ResultError(
                f"{path}: {key}: {repr(value) if value else unknown}; "
                f"figures are published{context} with {key} (--{key}): {names}"
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
    """Add the figures of one source, and what has to be said of them."""
    measured = {canonical_set(str(name)): str(name) for name in table.mean.index}
    names = [str(name) for name in rows["ood_set"]]
    for side, average in (("near", "nearood"), ("far", "farood")):
        members = members_of(side, names)
        if members is None:
            continue
        measured_sets = frozenset(map(canonical_set, table.near if side == "near" else table.far))
        comparable = members == measured_sets
        if not comparable and average in measured:
            notes.append(
                f"{side} average: no verdict. {source.partition(' (')[0]} averages over "
                f"{', '.join(sorted(members))}; this file's {average} over "
                f"{', '.join(sorted(measured_sets)) or 'nothing'}"
            )
        for row in rows.to_dict("records"):
            own = row["ood_set"] in (average, f"{side}-average")
            name = measured.get(average if own else canonical_set(row["ood_set"]))
            if name is None or not (own or canonical_set(row["ood_set"]) in members):
                continue
            for metric, column in _COLUMNS.items():
                value, std = table.value(name, metric)
                # Both sides are printed to 0.01: keep binary noise from deciding at the boundary.
                within = round(abs(value - row[column]), 6) <= tolerance if comparable or not own else None
                figures.append(Figure(source, name, metric, value, std, float(row[column]), within))
    missing = [
        name for name in names if not name.endswith("-average") and canonical_set(name) not in measured
    ]
    if missing:
        notes.append(f"published but not in this file: {', '.join(missing)}")
    notes.extend(note for note in rows["note"].unique() if note)


def members_of(side: str, names: list[str]) -> frozenset[str] | None:
    """The OOD sets behind a source's average; None where it has none."""
    if f"{side}-average" in names:
        return published.PAPER_SETS[side]
    if f"{side}ood" not in names:
        return None
    split = names.index("nearood") if "nearood" in names else -1
    part = names[:split] if side == "near" else names[split + 1 :]
    return frozenset(canonical_set(name) for name in part if name != "farood")


def render(comparison: Comparison) -> str:
    """The comparison as text for a terminal: percentages, differences in points."""
    table, what = comparison.table, comparison.what
    lines = [shown(str(table.source)), f"  {' · '.join(what.values())}   (file: {table.kind})"]
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
    verdict = {True: "ok", False: "OUTSIDE", None: "n/a"}[figure.within]
    measured = percentage(figure.measured, figure.std)
    return f"{measured:>15} {figure.published:9.2f} {figure.difference:+7.2f} {verdict:7}"

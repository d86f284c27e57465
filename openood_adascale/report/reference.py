"""Published results: as baselines beside a run, and compared with a result CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .. import published
from ..errors import ResultError
from ..metrics import COLUMNS
from .names import NETWORKS, canonical_set, identify, method_of, shown, words_of
from .run import MethodResult, Run, value_at
from .tables import ResultTable, read_table

NONE = "none"
DEFAULT_TOLERANCE = 0.5
"""Percentage points. Table 6 of the paper moves by at most 0.08 points between 100 and 5,000 validation images; rounding,
image decoding and ties cost correct programs a few hundredths; methods in Table 2 are mostly several points apart."""
KEYS = ("dataset", "network", "method", "scheme")
"""Keys that select published rows."""
_COLUMNS = {"FPR@95": "fpr95", "AUROC": "auroc"}


def references() -> list[tuple[str, str]]:
    """Return the (dataset, network) pairs with published results."""
    rows = published.results()[["dataset", "network"]].drop_duplicates()
    return [(dataset, network) for dataset, network in rows.itertuples(index=False) if network != "average"]


def parse_reference(text: str | None, run: Run | None = None) -> tuple[str, str] | None:
    """Return the dataset and network whose published results are shown, or None for no results.

    Args:
        text: ``DATASET:NETWORK``, ``none``, or None for the run's own dataset and network.
        run: Its ``id`` and ``network``, unless it was trained in another way than for the published results.

    Raises:
        ResultError: If nothing is published for ``text``.
    """
    pairs = references()
    if text is None:
        if run is None or not (run.id and run.network) or run.settings.get("training"):
            return None
        text, found = f"{run.id}:{run.network}", None
    elif text.strip().lower() == NONE:
        return None
    else:
        names = ", ".join(":".join(pair) for pair in pairs)
        found = ResultError(f"reference: {text!r}; expected {NONE}, or DATASET:NETWORK, one of {names}")
    dataset, _, network = text.strip().lower().partition(":")
    words = words_of(NETWORKS.get(words_of(network), network))
    for pair in pairs:
        if pair[0] == dataset and words_of(pair[1]) == words:
            return pair
    if found:
        raise found
    return None


@dataclass
class Baselines:
    """Published results for a run's dataset and network."""

    methods: list[MethodResult]
    """Methods that were not run, on the run's OOD sets; averages only if they are over these sets."""
    averages: pd.DataFrame | None
    """Averages over other OOD sets than the run's, of all published methods: comparable with each other only."""
    notes: list[str]
    """Sources."""


def baselines(run: Run, reference: tuple[str, str] | None) -> Baselines:
    """Return the published results for a run; see :func:`parse_reference` for the argument."""
    found = Baselines([], None, [])
    if reference is None or not run.methods:
        return found
    rows = published.results()
    mine = (
        (rows["dataset"] == reference[0]) & (rows["network"] == reference[1]) & (rows["scheme"] == run.scheme)
    )
    rows = rows[mine & ~rows["method"].str.contains(",")]  # without the ablations ("AdaSCALE-A, epsilon=0.1")
    was_run = {published_name(method.label) for method in run.methods}
    sets = {"near": run.near, "far": run.far}
    for name, group in rows.groupby("method", sort=False):
        table = _on_sets(group, sets) if name not in was_run else None
        if table is None or table.isna().all(axis=None):
            continue
        label = f"{name} (published)"
        found.methods.append(MethodResult(label, table, label, published=True))
        names = {canonical_set(one) for side in sets.values() for one in side}
        names |= {f"{side}-average" for side in sets if _papers(side, sets[side])}
        used = group[group["ood_set"].isin(names)]
        for text in dict.fromkeys([*used["source"], *filter(None, group["note"])]):
            found.notes.append(f"{label}: {text}")
    if not all(_papers(side, own) for side, own in sets.items()):
        wide = rows[rows["ood_set"].str.endswith("-average")].pivot(
            index="method", columns="ood_set", values=list(_COLUMNS.values())
        )
        columns = [(metric, f"{side}-average") for side in ("near", "far") for metric in _COLUMNS.values()]
        if len(wide):
            wide = wide.reindex(columns=pd.MultiIndex.from_tuples(columns))
            found.averages = wide.sort_values(("auroc", "near-average"), ascending=False, kind="stable")
    return found


def published_name(label: str) -> str:
    """Return the published name of a method, such as AdaSCALE-A for ``AdaSCALE-A (OpenOOD)``."""
    return re.split(r" [(\[]", label, maxsplit=1)[0]


def _papers(side: str, sets: Sequence[str]) -> bool:
    """Return True if these are the OOD sets behind the paper's average."""
    return frozenset(map(canonical_set, sets)) == published.PAPER_SETS[side]


def _on_sets(rows: pd.DataFrame, sets: dict[str, tuple[str, ...]]) -> pd.DataFrame:
    """Return a method's published results on a run's OOD sets, NaN where there are none."""
    known = rows.set_index("ood_set")
    index = [row for side, own in sets.items() for row in (*own, *([f"{side}ood"] if own else []))]
    table = pd.DataFrame(math.nan, index, list(COLUMNS))
    per_set = [name for name in known.index if not str(name).endswith("-average")]
    for side, own in sets.items():
        same = members_of(side, per_set) == frozenset(map(canonical_set, own))
        average = f"{side}-average" if _papers(side, own) else f"{side}ood" if same else ""
        for metric, column in _COLUMNS.items():
            values = known[column].reindex([canonical_set(one) for one in own])
            table.loc[list(own), metric] = values.to_numpy()
            if average in known.index:
                table.loc[f"{side}ood", metric] = known.loc[average, column]
            elif own:  # computed, unless one is missing
                table.loc[f"{side}ood", metric] = values.mean(skipna=False)
    return table


def members_of(side: str, names: list[str]) -> frozenset[str] | None:
    """Return the OOD sets behind a source's average, or None if it has no average."""
    if f"{side}-average" in names:
        return published.PAPER_SETS[side]
    if f"{side}ood" not in names:
        return None
    split = names.index("nearood") if "nearood" in names else -1
    part = names[:split] if side == "near" else names[split + 1 :]
    return frozenset(canonical_set(name) for name in part if name != "farood")


@dataclass(frozen=True)
class Value:
    """A measured percentage beside a published one."""

    source: str
    ood_set: str
    metric: str
    measured: float
    std: float
    published: float
    within: bool | None
    """If the difference is within the tolerance; None if the two are not comparable."""

    @property
    def difference(self) -> float:
        """Measured minus published, in points."""
        return self.measured - self.published


@dataclass(frozen=True)
class Comparison:
    """A result table beside all published results for the same dataset, network, method and scheme."""

    path: Path
    table: ResultTable
    keys: dict[str, str]
    values: list[Value]
    notes: list[str]
    tolerance: float

    @property
    def status(self) -> int:
        """Exit status, 0 if all comparable values are within the tolerance, 1 if not, 2 if none is comparable."""
        verdicts = [value.within for value in self.values if value.within is not None]
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
    """Compare a result CSV with the published results.

    An average is compared only if the published one is over the same OOD sets: the paper's near average also has
    ImageNet-O and its far average Places, which OpenOOD's ``nearood`` and ``farood`` lack.

    Args:
        path: Of the CSV.
        dataset: ID dataset as published (default: from the path).
        network: As published (default: from the path).
        method: Published name or postprocessor (default: from the path).
        scheme: ``ood`` or ``fsood`` (default: from the path, else ``ood``).
        tolerance: Largest difference that passes, in percentage points.

    Raises:
        ResultError: If the file cannot be read or nothing is published for it.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ResultError(f"tolerance: {tolerance}; expected a finite number of points, 0 or more")
    told = {"dataset": dataset, "network": network, "method": method, "scheme": scheme}
    table = read_table(path)
    rows, keys, notes = _published_rows(path, told)
    values: list[Value] = []
    for source, group in rows.groupby("source", sort=False):
        _compare_source(table, str(source), group, tolerance, values, notes)
    return Comparison(Path(path), table, keys, values, [*table.notes, *notes], tolerance)


def _published_rows(
    path: str | Path, told: dict[str, str | None]
) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    identity, rows, notes = identify(path), published.results(), []
    if identity.training:
        note = (
            f"the folder's name says {identity.training!r} for how {identity.network} was trained; the published "
            "results are for OpenOOD's base training or torchvision's V1 weights"
        )
        if told["network"] is None:
            raise ResultError(f"{path}: {note}; expected --network, to compare all the same")
        notes.append(note)
    if "_test_" in identity.run:
        notes.append("main.py's folder name does not say how the network was trained")
    keys: dict[str, str] = {}
    for key in KEYS:
        value = told[key] or getattr(identity, key)
        if value is None and key == "scheme":
            value = "ood"
            notes.append("the path does not say ood or fsood; ood is assumed (--scheme)")
        if value is None and key == "dataset" and (network := told["network"] or identity.network):
            datasets = rows[rows["network"] == network]["dataset"].unique()
            value = datasets[0] if len(datasets) == 1 else None
        if key == "method" and value:
            value = method_of(value)[0] or value
        allowed = sorted(rows[key].unique())
        match = next((name for name in allowed if name.lower() == str(value).lower()), None)
        if match is None:
            given = repr(value) if value else f"not in the path ({identity.stem!r})"
            names = "; ".join(name for name in allowed if "," not in name)  # without the ablations
            context = f" for {', '.join(keys.values())}" if keys else ""
            raise ResultError(f"{path}: {key}: {given}; expected, as published{context} (--{key}): {names}")
        keys[key], rows = match, rows[rows[key] == match]
    return rows, keys, notes


def _compare_source(
    table: ResultTable,
    source: str,
    rows: pd.DataFrame,
    tolerance: float,
    values: list[Value],
    notes: list[str],
) -> None:
    measured = {canonical_set(str(name)): str(name) for name in table.mean.index}
    names = [str(name) for name in rows["ood_set"]]
    for side, average in (("near", "nearood"), ("far", "farood")):
        members = members_of(side, names)
        if members is None:
            continue
        own_sets = frozenset(map(canonical_set, getattr(table, side)))
        if members != own_sets and average in measured:
            notes.append(
                f"{side} average not compared: {source.partition(' (')[0]} averages over {', '.join(sorted(members))}; "
                f"this file's {average} over {', '.join(sorted(own_sets)) or 'nothing'}"
            )
        for row in rows.to_dict("records"):
            is_average = row["ood_set"] in (average, f"{side}-average")
            name = measured.get(average if is_average else canonical_set(row["ood_set"]))
            if name is None or not (is_average or canonical_set(row["ood_set"]) in members):
                continue
            for metric, column in _COLUMNS.items():
                value, std = value_at(table.mean, name, metric), value_at(table.std, name, metric)
                # Both are printed to 0.01: binary noise must not decide at the boundary.
                within = round(abs(value - row[column]), 6) <= tolerance
                comparable = members == own_sets or not is_average
                values.append(
                    Value(
                        source, name, metric, value, std, float(row[column]), within if comparable else None
                    )
                )
    missing = [
        name for name in names if not name.endswith("-average") and canonical_set(name) not in measured
    ]
    if missing:
        notes.append(f"published but not in this file: {', '.join(missing)}")
    notes.extend(note for note in rows["note"].unique() if note)


def comparison_text(comparison: Comparison) -> str:
    """Format a comparison for a terminal: percentages, and differences in points."""
    lines = [
        shown(str(comparison.path)), f"  {' · '.join(comparison.keys.values())}   (file: {comparison.table.kind})"
    ]  # fmt: skip
    head = f"{'measured':>15} {'published':>9} {'diff':>7} {'':7}"
    by_source: dict[str, list[Value]] = {}
    for value in sorted(comparison.values, key=lambda value: value.within is None):
        by_source.setdefault(value.source, []).append(value)
    for source, values in by_source.items():
        compared = any(value.within is not None for value in values)
        title = "published" if compared else "for information only, over other OOD sets"
        lines += ["", f"  {title}: {source}", f"  {'':14}{'FPR@95':>15}{'':27}{'AUROC':>15}"]
        lines.append(f"  {'OOD set':14}{head}  {head}".rstrip())
        for name in dict.fromkeys(value.ood_set for value in comparison.values if value.source == source):
            cells = [_cells(value) for value in values if value.ood_set == name]
            lines.append(f"  {name:14}{'  '.join(cells)}".rstrip())
    lines += ["", *(f"  Note: {note}." for note in dict.fromkeys(comparison.notes))]
    verdicts = [value.within for value in comparison.values if value.within is not None]
    result = "all within" if all(verdicts) else f"{verdicts.count(False)} of {len(verdicts)} outside"
    if verdicts:
        lines.append(
            f"  Verdict: {result} ± {comparison.tolerance:g} points ({len(verdicts)} values compared)"
        )
    else:
        lines.append("  Verdict: nothing comparable")
    return "\n".join(lines)


def _cells(value: Value) -> str:
    verdict = {True: "ok", False: "OUTSIDE", None: "n/a"}[value.within]
    measured = f"{value.measured:.2f}" + ("" if math.isnan(value.std) else f" ± {value.std:.2f}")
    return f"{measured:>15} {value.published:9.2f} {value.difference:+7.2f} {verdict:7}"

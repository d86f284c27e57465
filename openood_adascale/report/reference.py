"""Published results: as baselines beside a run, and compared with a result CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .. import published
from ..errors import ResultError
from ..io import printable
from ..metrics import COLUMNS
from .names import AVERAGES, NETWORKS, canonical_set, identify, method_of, words_of
from .run import MethodResult, Run, value_at
from .tables import ResultTable, read_table

NONE = "none"
DEFAULT_TOLERANCE = 0.5
"""Percentage points. Rounding, image decoding and ties cost correct programs a few hundredths, and the choice of validation
images at most 0.08 points (Table 6 of the paper). Methods in Table 2 are mostly several points apart."""
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
    if text is not None and text.strip().lower() == NONE:
        return None
    if text is None and (run is None or not (run.id and run.network) or run.settings.get("training")):
        return None
    wanted = f"{run.id}:{run.network}" if text is None and run else str(text)
    dataset, _, network = wanted.strip().lower().partition(":")
    words = words_of(NETWORKS.get(words_of(network), network))
    pairs = references()
    found = next((pair for pair in pairs if (pair[0], words_of(pair[1])) == (dataset, words)), None)
    if text is not None and found is None:
        names = ", ".join(":".join(pair) for pair in pairs)
        raise ResultError(f"reference: {text!r}; expected {NONE}, or DATASET:NETWORK, one of {names}")
    return found


def baselines(run: Run, reference: tuple[str, str] | None) -> tuple[list[MethodResult], list[str]]:
    """Return published results of methods that were not run, on the run's OOD sets, and notes on their sources.

    Averages are there only if they are over the run's sets; see :func:`parse_reference` for ``reference``.
    """
    if reference is None or not run.methods:
        return [], []
    rows = published.results()
    mine = (rows["dataset"] == reference[0]) & (rows["network"] == reference[1])
    mine &= rows["scheme"] == run.scheme
    rows = rows[mine & ~rows["method"].str.contains(",")]  # without the ablations ("AdaSCALE-A, epsilon=0.1")
    was_run = {re.split(r" [(\[]", method.label, maxsplit=1)[0] for method in run.methods}
    sets = {"near": run.near, "far": run.far}
    names = {canonical_set(one) for own in sets.values() for one in own}
    names |= {
        f"{side}-average" for side, own in sets.items() if _canonical(own) == published.PAPER_SETS[side]
    }
    methods: list[MethodResult] = []
    notes: dict[str, None] = {}
    for name, group in rows[~rows["method"].isin(was_run)].groupby("method", sort=False):
        table = _on_sets(group, sets)
        if table.notna().any(axis=None):
            label = f"{name} (published)"
            methods.append(MethodResult(label, table, label, published=True))
            used = group[group["ood_set"].isin(names)]
            notes |= {f"{label}: {text}": None for text in (*used["source"], *filter(None, group["note"]))}
    return methods, list(notes)


def _canonical(sets: Iterable[str]) -> frozenset[str]:
    return frozenset(map(canonical_set, sets))


def _on_sets(rows: pd.DataFrame, sets: dict[str, tuple[str, ...]]) -> pd.DataFrame:
    """Return a method's published results on a run's OOD sets (NaN if there are none)."""
    known = rows.set_index("ood_set")[list(_COLUMNS.values())].set_axis(list(_COLUMNS), axis=1)
    per_set = [str(name) for name in known.index if not str(name).endswith("-average")]
    parts = []
    for side, own in sets.items():
        if own:
            part = known.reindex(list(map(canonical_set, own))).set_axis(list(own))
            mean = part.mean(skipna=False)
            if _canonical(own) == published.PAPER_SETS[side] and f"{side}-average" in known.index:
                mean = known.loc[f"{side}-average"]
            elif members_of(side, per_set) == _canonical(own):
                mean = known.loc[f"{side}ood"]
            parts += [part, mean.to_frame(f"{side}ood").T]
    return pd.concat(parts).astype(float).reindex(columns=list(COLUMNS))


def members_of(side: str, names: Sequence[str]) -> frozenset[str] | None:
    """Return the OOD sets behind a source's average, or None if it has no average."""
    if f"{side}-average" in names:
        return published.PAPER_SETS[side]
    if f"{side}ood" not in names:
        return None
    split = names.index("nearood") if "nearood" in names else -1
    return _canonical(set(names[:split] if side == "near" else names[split + 1 :]) - {"farood"})


@dataclass(frozen=True)
class Comparison:
    """A result table and all published results for the same dataset, network, method and scheme."""

    path: Path
    table: ResultTable
    keys: dict[str, str]
    values: pd.DataFrame
    """Columns ``source``, ``ood_set``, ``metric``, ``measured``, ``std`` and ``published`` (percent), ``difference``
    (measured minus published, in points) and ``verdict``: ``ok``, ``OUTSIDE`` the tolerance, or ``n/a`` if the averages
    are over different OOD sets."""
    notes: list[str]
    tolerance: float

    @property
    def status(self) -> int:
        """Exit status, 0 if all comparable values are within the tolerance, 1 if not, 2 if none is comparable."""
        verdicts = {*self.values["verdict"]} - {"n/a"}
        return int("OUTSIDE" in verdicts) if verdicts else 2


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
    found = []
    for source, group in rows.groupby("source", sort=False):
        found += _values(table, str(source), group, notes)
    columns = ["source", "ood_set", "metric", "measured", "std", "published", "comparable"]
    values = pd.DataFrame(found, columns=columns)
    values["difference"] = values["measured"] - values["published"]
    # Both are printed to 0.01: binary noise must not decide at the boundary.
    within = values["difference"].abs().round(6) <= tolerance
    values["verdict"] = within.map({True: "ok", False: "OUTSIDE"}).where(
        values.pop("comparable").astype(bool), "n/a"
    )
    values = values.sort_values("verdict", key=lambda verdict: verdict == "n/a", kind="stable")
    return Comparison(Path(path), table, keys, values, [*dict.fromkeys([*table.notes, *notes])], tolerance)


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


def _values(
    table: ResultTable, source: str, rows: pd.DataFrame, notes: list[str]
) -> list[tuple[object, ...]]:
    """Return the rows of :attr:`Comparison.values` for one source, with True for comparable ones."""
    found: list[tuple[object, ...]] = []
    measured = {canonical_set(str(name)): str(name) for name in table.mean.index}
    names = [str(name) for name in rows["ood_set"]]
    comparable = {}
    for side, average in zip(("near", "far"), AVERAGES, strict=True):
        members, own_sets = members_of(side, names), _canonical(getattr(table, side))
        comparable[average] = members == own_sets
        if members and members != own_sets and average in measured:
            notes.append(
                f"{side} average not compared: {source.partition(' (')[0]} averages over {', '.join(sorted(members))}; "
                f"this file's {average} over {', '.join(sorted(own_sets)) or 'nothing'}"
            )
    missing = []
    for row in rows.to_dict("records"):
        known = canonical_set(re.sub("-average$", "ood", row["ood_set"]))
        if known in measured:
            for metric, column in _COLUMNS.items():
                value, std = (value_at(part, measured[known], metric) for part in (table.mean, table.std))
                verdict = comparable.get(known, True)
                found.append((source, measured[known], metric, value, std, float(row[column]), verdict))
        elif not row["ood_set"].endswith("-average"):
            missing.append(row["ood_set"])
    if missing:
        notes.append(f"published but not in this file: {', '.join(missing)}")
    notes.extend(note for note in rows["note"].unique() if note)
    return found


def comparison_text(comparison: Comparison) -> str:
    """Format a comparison for a terminal: percentages, and differences in points."""
    kind = f"(file: {comparison.table.kind})"
    lines = [printable(str(comparison.path)), f"  {' · '.join(comparison.keys.values())}   {kind}"]
    values = comparison.values
    for source, group in values.groupby("source", sort=False):
        compared = (group["verdict"] != "n/a").any()
        std = group["std"].map(lambda value: "" if math.isnan(value) else f" ± {value:.2f}")
        text = pd.DataFrame(
            {
                "OOD set": group["ood_set"],
                "metric": group["metric"],
                "measured": group["measured"].map("{:.2f}".format) + std,
                "published": group["published"].map("{:.2f}".format),
                "difference": group["difference"].map("{:+.2f}".format),
                "": group["verdict"],
            }
        )
        title = "published" if compared else "for information only, over other OOD sets"
        lines += [
            "",
            f"  {title}: {source}",
            text.sort_values("metric", kind="stable").to_string(index=False),
        ]
    lines += ["", *(f"  Note: {note}." for note in comparison.notes)]
    compared = values[values["verdict"] != "n/a"]
    outside = int((compared["verdict"] == "OUTSIDE").sum())
    result = f"{outside} of {len(compared)} outside" if outside else "all within"
    if len(compared):
        lines.append(
            f"  Verdict: {result} ± {comparison.tolerance:g} points ({len(compared)} values compared)"
        )
    else:
        lines.append("  Verdict: nothing comparable")
    return "\n".join(lines)

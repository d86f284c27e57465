"""Published results: as baselines beside a run, and compared with a result CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .. import published
from ..errors import ResultError
from ..io import printable
from .names import AVERAGES, NETWORKS, canonical_set, identify, method_of, words_of
from .run import MethodResult, Run
from .statistics import METRICS
from .tables import read_table, table_of

NONE = "none"
DEFAULT_TOLERANCE = 0.5
"""Percentage points. Rounding, image decoding and ties cost correct programs a few hundredths, and the choice of validation
images at most 0.08 points (Table 6 of the paper). Methods in Table 2 are mostly several points apart."""
KEYS = ("dataset", "network", "method", "scheme")
"""Keys that select published rows."""


def references() -> list[tuple[str, str]]:
    """Return the (dataset, network) pairs with published results."""
    rows = published.results().query("network != 'average'")[["dataset", "network"]].drop_duplicates()
    return list(rows.itertuples(index=False, name=None))


def parse_reference(text: str | None, run: Run | None = None) -> tuple[str, str] | None:
    """Return the dataset and network whose published results are shown, or None for no results.

    Args:
        text: ``DATASET:NETWORK``, ``none``, or None for the run's own dataset and network.
        run: Its ``id`` and ``network``, unless it was trained in another way than for the published results.

    Raises:
        ResultError: If nothing is published for ``text``.
    """
    wanted = text
    if text is None and run and not run.settings.get("training"):
        wanted = f"{run.id}:{run.network}"
    if wanted is None or wanted.strip().lower() == NONE:
        return None
    dataset, _, network = wanted.strip().lower().partition(":")
    words = words_of(NETWORKS.get(words_of(network), network))
    pairs = references()
    found = next((pair for pair in pairs if (pair[0], words_of(pair[1])) == (dataset, words)), None)
    if text is not None and found is None:
        names = ", ".join(map(":".join, pairs))
        raise ResultError(f"reference: {text!r}; expected {NONE}, or DATASET:NETWORK, one of {names}")
    return found


def _results() -> pd.DataFrame:
    return published.results().rename(columns={"fpr95": "FPR@95", "auroc": "AUROC"})


def baselines(run: Run, reference: tuple[str, str] | None) -> tuple[list[MethodResult], list[str]]:
    """Return published results of methods that were not run, on the run's OOD sets, and notes on their sources.

    Averages are there only if they are over the run's sets; see :func:`parse_reference` for ``reference``.
    """
    if reference is None:
        return [], []
    rows = _results()
    for key, value in zip(("dataset", "network", "scheme"), (*reference, run.scheme), strict=True):
        rows = rows[rows[key] == value]
    was_run = [re.split(r" [(\[]", method.label, maxsplit=1)[0] for method in run.methods]
    methods: list[MethodResult] = []
    notes: dict[str, None] = {}
    averaged = _averaged(run.near, run.far)
    for name, group in rows.groupby("method", sort=False):
        name = str(name)
        if name in was_run or "," in name:  # "AdaSCALE-A, epsilon=0.1" is an ablation
            continue
        known = group.set_index("ood_set")[list(METRICS)]
        own = {one: canonical_set(one) for one in run.sets if canonical_set(one) in known.index}
        table = table_of({one: known.loc[key] for one, key in own.items()}, run.near, run.far)
        used = {*own.values()}
        for key in map(str, known.index):
            average, sets = key.replace("-average", "ood"), published.averaged_sets(reference[0], key)
            if sets and sets == averaged.get(average):
                table.loc[average, known.columns] = known.loc[key]
                used.add(key)
        if table.notna().any(axis=None):
            label = f"{name} (published)"
            methods.append(MethodResult(label, table, label, published=True))
            sources = group["source"][group["ood_set"].isin(used)]
            notes |= {f"{label}: {text}": None for text in (*sources, *filter(None, group["note"]))}
    return methods, list(notes)


def _averaged(near: Iterable[str], far: Iterable[str]) -> dict[str, set[str]]:
    """Return the OOD sets behind each average."""
    return {row: {*map(canonical_set, sets)} for row, sets in zip(AVERAGES, (near, far), strict=True)}


@dataclass(frozen=True)
class Comparison:
    """A result table and all published results for the same dataset, network, method and scheme."""

    path: Path
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
    table = read_table(path)
    rows, keys, notes = _published_rows(
        path, dict(zip(KEYS, (dataset, network, method, scheme), strict=True))
    )
    result = MethodResult(keys["method"], table.mean, std=table.std)
    measured = {canonical_set(name): name for name in table.mean.index}
    averaged = _averaged(table.near, table.far)
    found, missing = [], []
    for row in rows.to_dict("records"):
        sets = published.averaged_sets(keys["dataset"], row["ood_set"])
        name = canonical_set(row["ood_set"].replace("-average", "ood"))
        if name not in measured:
            missing += [row["ood_set"]] if sets is None else []
            continue
        comparable = sets in (None, averaged.get(name))
        if sets and not comparable:
            source, own = row["source"].partition(" (")[0], ", ".join(sorted(averaged[name]))
            notes.append(
                f"{name} not compared: {source} averages over {', '.join(sorted(sets))}; this file's {name} over {own}"
            )
        for metric in METRICS:
            value, std = result.value(measured[name], metric)
            found.append((row["source"], measured[name], metric, value, std, row[metric], comparable))
    if missing:
        notes.append(f"published but not in this file: {', '.join(missing)}")
    columns = ["source", "ood_set", "metric", "measured", "std", "published", "comparable"]
    values = pd.DataFrame(found, columns=columns)
    values["difference"] = values["measured"] - values["published"]
    # Both are printed to 0.01: binary noise must not decide at the boundary.
    verdict = np.where(values["difference"].abs().round(6) <= tolerance, "ok", "OUTSIDE")
    values["verdict"] = np.where(values.pop("comparable"), verdict, "n/a")
    values = values.sort_values("verdict", key=lambda verdict: verdict == "n/a", kind="stable")
    notes = [*table.notes, *notes, *filter(None, rows["note"])]
    return Comparison(Path(path), keys, values, list(dict.fromkeys(notes)), tolerance)


def _published_rows(
    path: str | Path, told: dict[str, str | None]
) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """Return the published rows of a result file, the keys that select them, and notes."""
    identity, rows, notes = identify(path), _results(), []
    if identity.training:
        note = (
            f"the folder's name says {identity.training!r} for how {identity.network} was trained; the published "
            "results are for OpenOOD's base training or torchvision's V1 weights"
        )
        if told["network"] is None:
            raise ResultError(f"{path}: {note}; expected --network, to compare all the same")
        notes.append(note)
    keys: dict[str, str] = {}
    for key in KEYS:
        value = told[key] or getattr(identity, key)
        if key == "scheme" and value is None:
            value = "ood"
            notes.append("the path does not say ood or fsood; ood is assumed (--scheme)")
        elif key == "method" and value:
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


def comparison_text(comparison: Comparison) -> str:
    """Format a comparison for a terminal: percentages, and differences in points."""
    lines = [printable(str(comparison.path)), f"  {' · '.join(comparison.keys.values())}"]
    values = comparison.values
    for source, group in values.groupby("source", sort=False):
        text = group.drop(columns="source").rename(columns={"ood_set": "OOD set", "verdict": ""})
        std = text.pop("std").map(lambda value: "" if math.isnan(value) else f" ± {value:.2f}")
        text["measured"] = text["measured"].map("{:.2f}".format) + std
        text = text.sort_values("metric", kind="stable")
        compared = (group["verdict"] != "n/a").any()
        title = "published" if compared else "for information only, over other OOD sets"
        formats = {"published": "{:.2f}".format, "difference": "{:+.2f}".format}
        lines += ["", f"  {title}: {source}", text.to_string(index=False, formatters=formats)]
    lines += ["", *(f"  Note: {note}." for note in comparison.notes)]
    counts = values["verdict"].value_counts()
    outside, count = counts.get("OUTSIDE", 0), len(values) - counts.get("n/a", 0)
    result = f"{outside} of {count} outside" if outside else "all within"
    verdict = f"{result} ± {comparison.tolerance:g} points ({count} values compared)"
    lines.append(f"  Verdict: {verdict if count else 'nothing comparable'}")
    return "\n".join(lines)

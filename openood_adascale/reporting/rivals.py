"""Published figures of methods that were not run, for a run's data set and network."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from .. import published
from ..errors import ResultError
from ..metrics import COLUMNS
from .compare import members_of
from .identify import Identity
from .names import NETWORKS, canonical_set, words_of
from .runs import Evaluated, unknown
from .sheets import Sheet
from .tables import ResultTable
from .text import percentage

NONE = "none"
MARK = " (published)"
_METRICS = {"FPR@95": "fpr95", "AUROC": "auroc"}


@dataclass
class Rivals:
    """What was published beside what was measured."""

    beside: list[Evaluated] = field(default_factory=list)
    """Methods that were not run, on the run's own OOD sets; an average is there only if it is over these."""
    sheet: Sheet | None = None
    """Averages that were published over other OOD sets: of all methods, for they compare only with each other."""
    notes: list[str] = field(default_factory=list)
    """Where the figures are from, and what has to be known of them."""


def whose(identity: Identity, chosen: str | None) -> tuple[str, str] | None:
    """The data set and the network whose published figures a run is seen with.

    Args:
        identity: of the run.
        chosen: ``DATASET:NETWORK``, ``none``, or None for what the run's folder says.

    Raises:
        ResultError: nothing is published for what was chosen.
    """
    if chosen is None:
        known = identity.dataset is not None and identity.network is not None and identity.training is None
        return (str(identity.dataset), str(identity.network)) if known else None
    if chosen.strip().lower() == NONE:
        return None
    pairs = _pairs()
    dataset, _, network = chosen.strip().lower().partition(":")
    words = words_of(NETWORKS.get(words_of(network), network))
    found = next((pair for pair in pairs if pair[0] == dataset and words_of(pair[1]) == words), None)
    if found is None:
        there = ", ".join(":".join(pair) for pair in pairs)
        raise ResultError(f"published: {chosen!r}; expected {NONE}, or DATASET:NETWORK, which can be {there}")
    return found


def _pairs() -> list[tuple[str, str]]:
    rows = published.results()[["dataset", "network"]].drop_duplicates()
    return [(dataset, network) for dataset, network in rows.itertuples(index=False) if network != "average"]


def rivals(methods: Sequence[Evaluated], of: tuple[str, str] | None, scheme: str) -> Rivals:
    """The published figures beside a scheme's methods.

    Args:
        methods: that were run; the OOD sets are those of the first.
        of: data set and network, see :func:`whose`.
        scheme: ``ood`` or ``fsood``.
    """
    found = Rivals()
    if of is None or not methods:
        return found
    rows = published.results()
    mine = (rows["dataset"] == of[0]) & (rows["network"] == of[1]) & (rows["scheme"] == scheme)
    # The ablations' names have a comma ("AdaSCALE-A, epsilon=0.1").
    rows = rows[mine & ~rows["method"].str.contains(",")]
    was_run = {published_name(method.label) for method in methods}
    sets = {"near": methods[0].table.near, "far": methods[0].table.far}
    for name, group in rows.groupby("method", sort=False):
        if name not in was_run and (made := _beside(str(name), group, sets)) is not None:
            found.beside.append(made)
            sources = dict.fromkeys(str(source) for source in _used(group, made)["source"])
            found.notes.append(f"{name}{MARK}: {'; '.join(sources)}")
            found.notes += [f"{name}{MARK}: {note}" for note in dict.fromkeys(group["note"]) if note]
    found.sheet = _averages(rows, was_run, sets)
    return found


def published_name(label: str) -> str:
    """The published name behind a method's label: ``AdaSCALE-A (OpenOOD)`` is AdaSCALE-A."""
    return re.split(r" [(\[]", label, maxsplit=1)[0]


def _same(side: str, sets: Sequence[str]) -> bool:
    """Whether these are the OOD sets behind the paper's average."""
    return frozenset(map(canonical_set, sets)) == published.PAPER_SETS[side]


def _beside(name: str, rows: pd.DataFrame, sets: dict[str, tuple[str, ...]]) -> Evaluated | None:
    """A method's published figures on the run's OOD sets; None where there are none."""
    known = {str(row["ood_set"]): row for row in rows.to_dict("records")}
    index = [row for side in sets for row in (*sets[side], *([f"{side}ood"] if sets[side] else []))]
    table = pd.DataFrame(math.nan, index=index, columns=list(COLUMNS))
    per_set = [name for name in known if not name.endswith("-average")]
    for side, own in sets.items():
        # The average over just these sets, if that was published; else it is computed of theirs.
        same = members_of(side, per_set) == frozenset(map(canonical_set, own))
        average = f"{side}-average" if _same(side, own) else f"{side}ood" if same else ""
        for metric, column in _METRICS.items():
            values = [known[key][column] if (key := canonical_set(one)) in known else math.nan for one in own]
            for one, value in zip(own, values, strict=True):
                table.loc[one, metric] = value
            if average in known:
                table.loc[f"{side}ood", metric] = known[average][column]
            elif own:  # NaN where one of them is
                table.loc[f"{side}ood", metric] = sum(values) / len(values)
    if bool(table.isna().all(axis=None)):
        return None
    return Evaluated(
        f"{name}{MARK}", ResultTable(sets["near"], sets["far"], table, unknown(table)), published=True
    )


def _used(rows: pd.DataFrame, made: Evaluated) -> pd.DataFrame:
    """The rows that a method's figures are from."""
    names = {canonical_set(name) for name in (*made.table.near, *made.table.far)}
    averages = {f"{side}-average" for side in ("near", "far") if _same(side, getattr(made.table, side))}
    return rows[rows["ood_set"].isin(names | averages)]


def _averages(rows: pd.DataFrame, was_run: set[str], sets: dict[str, tuple[str, ...]]) -> Sheet | None:
    """The paper's averages; None where it has none, or where they are over the run's own OOD sets."""
    wide = rows[rows["ood_set"].str.endswith("-average")].pivot(
        index="method", columns="ood_set", values=list(_METRICS.values())
    )
    if wide.empty or all(_same(side, own) for side, own in sets.items()):
        return None
    columns = [(metric, f"{side}-average") for side in ("near", "far") for metric in _METRICS.values()]
    wide = wide.reindex(columns=pd.MultiIndex.from_tuples(columns))
    wide = wide.sort_values(("auroc", "near-average"), ascending=False, kind="stable")
    cells = []
    for name, values in wide.iterrows():
        mark = "; run here, too" if name in was_run else ""
        label = f"{name} (published{mark})"
        cells.append([(label, False), *((percentage(float(value)), False) for value in values)])
    over = "; ".join(f"{side} {', '.join(sorted(members))}" for side, members in published.PAPER_SETS.items())
    title = f"Published averages (%) over other OOD sets, not comparable with those above: {over}"
    headings = ["Near FPR@95 ↓", "Near AUROC ↑", "Far FPR@95 ↓", "Far AUROC ↑"]
    return Sheet(title, ["Method", *headings], cells, frozenset(range(len(cells))))

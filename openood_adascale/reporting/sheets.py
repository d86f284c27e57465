"""The tables that a report shows, before they become HTML or Markdown."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .names import label_of
from .runs import Evaluated
from .searches import Search
from .text import percentage, shown

_MOST_CANDIDATES = 20


@dataclass(frozen=True)
class Sheet:
    """Text in rows and columns."""

    title: str
    columns: list[str]
    rows: list[list[tuple[str, bool]]]
    """Text, and whether it is the best of its column."""
    published: frozenset[int] = frozenset()
    """Places of the rows that were published, not measured."""


def of_methods(methods: list[Evaluated]) -> list[Sheet]:
    """Averages, AUROC and FPR@95 of all methods."""
    averages = [
        (f"{side} {metric} {arrow}", f"{side.lower()}ood", metric)
        for side in ("Near", "Far")
        for metric, arrow in (("FPR@95", "↓"), ("AUROC", "↑"))
        if any(f"{side.lower()}ood" in method.table.mean.index for method in methods)
    ]
    last = "farood" if any("farood" in method.table.mean.index for method in methods) else "nearood"
    sets = [
        *dict.fromkeys(name for method in methods for name in method.table.near),
        *dict.fromkeys(name for method in methods for name in method.table.far),
    ]
    return [
        _side_by_side("Averages (%)", methods, [*averages, ("ID accuracy ↑", last, "ACC")]),
        _side_by_side("AUROC per OOD set (%) ↑", methods, [(name, name, "AUROC") for name in sets]),
        _side_by_side("FPR@95 per OOD set (%) ↓", methods, [(name, name, "FPR@95") for name in sets]),
    ]


def _side_by_side(title: str, methods: list[Evaluated], cells: list[tuple[str, str, str]]) -> Sheet:
    """``cells``: for each column its heading, row of the result table and metric."""
    rows = [[(method.label, False)] for method in methods]
    for _, row, metric in cells:
        values = [method.value(row, metric) for method in methods]
        rounded = [
            round(mean, 2)
            for method, (mean, _) in zip(methods, values, strict=True)
            if not (math.isnan(mean) or method.published)
        ]
        best = (min if metric == "FPR@95" else max)(rounded) if len(set(rounded)) > 1 else None
        for method, line, (mean, std) in zip(methods, rows, values, strict=True):
            is_best = best is not None and not method.published and round(mean, 2) == best
            line.append((percentage(mean, std), is_best))
    published = frozenset(place for place, method in enumerate(methods) if method.published)
    return Sheet(title, ["Method", *(heading for heading, _, _ in cells)], rows, published)


def of_candidates(name: str, search: Search) -> Sheet:
    """The best candidates of a search that no heat map fits: what was searched, and the AUROC."""
    table = search.candidates
    best = table.sort_values("auroc", ascending=False, kind="stable").head(_MOST_CANDIDATES)
    columns = search.searched() or [str(name) for name in table if name != "auroc"]
    title = f"{label_of(name)}: AUROC on validation images (%) ↑"
    if len(best) < len(table):
        title += f", the best {len(best)} of {len(table)} candidates"
    rows = []
    for row in best.to_dict("records"):
        cells = [(_setting(row[column]), False) for column in columns]
        is_best = round(row["auroc"], 2) == round(best["auroc"].max(), 2)
        rows.append([*cells, (f"{row['auroc']:.2f}", is_best)])
    return Sheet(title, [*map(shown, columns), "AUROC"], rows)


def _setting(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(str(value))[:40]

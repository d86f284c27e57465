"""The report of a run: one HTML page that needs nothing else, and Markdown with SVG figures."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

try:
    from . import figures
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise
    message = "a report needs matplotlib: pip install 'openood-adascale[plots]'"
    raise ImportError(message, name=error.name) from error

from ..errors import ResultError
from ..io import printable, replacing
from ..metrics import score_kept
from .gallery import TPR, Gallery, gallery
from .names import AVERAGES, file_names, label_of, shortened
from .reference import baselines, parse_reference
from .run import MethodResult, Run
from .statistics import METRICS, bootstrap

MAX_IMAGES = 8
_MAX_CANDIDATES, _LARGEST_MAP = 20, 60
_ARROWS = {"FPR@95": "↓", "AUROC": "↑"}
_TITLES = {"ood": "OOD detection", "fsood": "Full-spectrum OOD detection"}


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    mark: str = ""
    """``best``, ``equal`` to the best, or nothing."""
    interval: str = ""


class Table(NamedTuple):
    """A table of text."""

    title: str
    columns: list[str]
    rows: list[tuple[list[Cell], bool]]
    """Cells, and True for published results."""
    intervals: bool = False
    """Print the intervals in the cells."""


class Drawing(NamedTuple):
    """A figure with its caption."""

    svg: str
    caption: str
    file: str


_Draw = Callable[[str, str, str], Drawing]
"""Makes a drawing of an SVG text, its caption and a name for its file."""


def write_report(
    runs: Run | Sequence[Run],
    folder: str | Path,
    *,
    compare_methods: Sequence[str] | None = None,
    max_images: int = MAX_IMAGES,
    reference: str | None = None,
) -> Path:
    """Write ``index.html``, ``report.md`` and ``figures/*.svg`` to a folder and return the page's path.

    Args:
        runs: A run, or one per scheme.
        folder: It is created.
        compare_methods: Two methods, by name or label, of which the page shows the images on which they disagree most
            (default: AdaSCALE-A and the best other method).
        max_images: Largest number of images in a row, 0 for none.
        reference: ``DATASET:NETWORK`` of the published results that are shown as baselines, or ``none`` (default: the
            run's own dataset and network).

    Raises:
        ResultError: If an option is none of these.
        OSError: If a file cannot be written.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs or not all(run.methods and run.sets for run in runs):
        raise ResultError("runs: expected at least one run, each with methods and OOD sets")
    methods = [one for run in runs for one in run.methods]
    pair = check_options(methods, compare_methods, max_images, reference)
    folder = Path(folder)
    files: dict[str, str] = {}

    def draw(svg: str, caption: str, name: str) -> Drawing:
        file = file_names([*files, name])[-1]
        files[file] = svg
        return Drawing(svg, caption.strip(), f"{file}.svg")

    chapters = [
        _Chapter(run, parse_reference(reference, run), draw).content(pair, max_images) for run in runs
    ]
    first = runs[0]
    title = " · ".join(filter(None, (first.id, first.network))) or first.title or "Results"
    counts = first.images["set"].value_counts()
    id_count = counts.get("id", 0)
    images = f"{id_count:,} ID and {counts.sum() - id_count:,} OOD images" if id_count else ""
    version = f"openood-adascale {first.version}"
    facts = [first.title if first.title != title else "", images, first.date[:10], version]
    script = _source("script.js")
    context = {
        "title": title,
        "facts": list(filter(None, facts)),
        "chapters": chapters,
        "style": Markup(_source("style.css")),
        "script": Markup(script),
        "hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    for name, text in files.items():
        _put(folder, f"figures/{name}.svg", text.replace("<svg ", '<svg style="background: #ffffff" ', 1))
    environment = _environment()
    _put(folder, "report.md", environment.get_template("report.md.j2").render(context))
    return _put(folder, "index.html", environment.get_template("index.html.j2").render(context))


def check_options(
    methods: Iterable[MethodResult | str],
    compare_methods: Sequence[str] | None = None,
    max_images: int = MAX_IMAGES,
    reference: str | None = None,
) -> tuple[str, str] | None:
    """Check the options of :func:`write_report`, which are the same here, and return the labels of ``compare_methods``.

    Args:
        methods: Names of the methods, or their results.
        compare_methods: Two of them, by name or label.
        max_images: Largest number of images in a row.
        reference: ``DATASET:NETWORK`` or ``none``.

    Raises:
        ResultError: If an option is not allowed.
    """
    if not (isinstance(max_images, int) and max_images >= 0):
        raise ResultError(f"max-images: {max_images!r}; expected a whole number, 0 or more")
    parse_reference(reference)
    if not compare_methods:
        return None
    known: dict[str, str] = {}
    for method in methods:
        name, label = (method, label_of(method)) if isinstance(method, str) else (method.name, method.label)
        known |= {name.casefold(): label, label.casefold(): label}
    names = [name.strip() for name in compare_methods]
    found = [known.get(name.casefold()) or known.get(label_of(name).casefold()) for name in names]
    if len(found) != 2 or not (found[0] and found[1]) or found[0] == found[1]:
        labels = ", ".join(dict.fromkeys(known.values()))
        raise ResultError(f"compare-methods: {', '.join(names)!r}; expected two different ones of {labels}")
    return found[0], found[1]


def _put(root: Path, name: str, text: str) -> Path:
    """Write a file and rename it, so that a link in its place is replaced and not followed."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    return path


# The templates.


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("openood_adascale.report"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = markdown
    environment.filters["inline"] = lambda svg: Markup(figures.inline(svg))
    environment.tests["drawing"] = lambda value: isinstance(value, Drawing)
    return environment


def _source(name: str) -> str:
    text = (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")  # as browsers see it, for the hash


def markdown(text: str) -> Markup:
    """Escape text for one line of Markdown, GitHub's included."""
    text = re.sub(r"[\\`*_\[\]|~$#]", r"\\\g<0>", printable(str(text)))
    # At the start of an item or cell these would begin a list or heading.
    text = re.sub(r"^(\d*)([-+=.)])(?=\s|$)", r"\1\\\2", text)
    return Markup(html.escape(text, quote=False))


# The contents.


class _Chapter:
    """Everything that the templates show of a run."""

    def __init__(self, run: Run, reference: tuple[str, str] | None, draw: _Draw) -> None:
        self.run, self.draw = run, draw
        published, self.sources = baselines(run, reference)
        self.ranked = run.ranked()
        self.methods = Run([*run.methods, *published], run.near, run.far, run.scheme).ranked()
        self.several = any(method.std is not None for method in run.methods)
        values = {one.name: run.values(one) for one in self.ranked}
        self.scores = {name: own for name, own in values.items() if len(own) > 1 and "id" in own}
        self.boot = bootstrap({} if self.several else self.scores, run.near, run.far)
        self.tint = figures.colours([method.label for method in self.ranked])
        self.sides = [side for side in ("near", "far") if getattr(run, side)]
        self.columns = [
            (f"{side.capitalize()} {metric} {_ARROWS[metric]}", f"{side}ood", metric)
            for side in self.sides
            for metric in METRICS
        ]
        """Heading, row of the result tables, and metric."""

    def content(self, pair: tuple[str, str] | None, max_images: int) -> dict[str, Any]:
        run, notes = self.run, [*self.run.notes, *self.sources]
        if not self.boot.values and len(run.methods) > 1:
            why = "no scores of each image" if not self.several else "means over training runs"
            notes.append(f"No confidence intervals over images: the run has {why}.")
        shot = gallery(run, pair, max_images) if max_images else Gallery()
        searches = []
        for method in run.methods:
            try:
                searches += [] if method.search is None else [self.search(method.label, method.search)]
            except (LookupError, TypeError, ValueError) as error:
                notes.append(f"{method.label}: search left out, it is no table of candidates ({error})")
        columns = [*self.columns, ("ID accuracy ↑", f"{self.sides[-1]}ood", "ACC")]
        return {
            "id": run.scheme,
            "title": _TITLES[run.scheme],
            "best": list(filter(None, map(self.best, self.sides))),
            "overview": self.overview(),
            "averages": [self.table("Averages over the OOD sets (%)", columns, bool(self.boot.values))],
            "sets": [
                self.table(
                    f"{metric} per OOD set (%) {_ARROWS[metric]}", [(one, one, metric) for one in run.sets]
                )
                for metric in METRICS[::-1]
            ],
            "curves": self.curves(),
            "gallery": shot if shot.methods else None,
            "adascale": list(filter(None, map(self.observed, self.ranked))),
            "searches": sorted(searches, key=lambda one: isinstance(one, Table)),  # heat maps first
            "settings": self.settings(),
            "notes": list(dict.fromkeys([*notes, *shot.notes])),
        }

    def best(self, side: str) -> dict[str, str] | None:
        """Say which method is best on one side, by how much, and if that is more than chance."""
        row, boot = f"{side}ood", self.boot
        found = [(round(one.value(row, "AUROC")[0], 2), one) for one in self.run.methods]
        found = sorted((pair for pair in found if pair[0] >= 0), key=lambda pair: -pair[0])
        if not found:
            return None
        (top, best), *others = found
        text = ""
        if others:
            text = f"{top - others[0][0]:.2f} points above {others[0][1].label}. "
            difference = boot.difference(best.name, others[0][1].name, row, "AUROC")
            equal = [one.label for _, one in others if boot.equal(best.name, one.name, row, "AUROC")]
            if equal:
                text += f"Not distinguishable from {_listed(equal)}: the difference can be chance."
            elif difference:
                ends = _interval(difference, "+", " to ")
                text += f"More than chance: the 95 % interval of the difference is {ends}."
            else:
                text += "Without scores of each image it is unknown if that is more than chance."
        return {
            "side": f"{side}-OOD",
            "label": best.label,
            "value": f"{top:.2f}",
            "interval": _interval(boot.interval(best.name, row, "AUROC")),
            "fpr": f"{best.value(row, 'FPR@95')[0]:.2f}",
            "text": text,
        }

    def overview(self) -> list[Drawing]:
        """Draw the averages of all methods."""
        drawn = [one for one in self.methods if any(one.value(row, "AUROC")[0] >= 0 for row in AVERAGES)]
        if not drawn:
            return []
        panels = {}
        for heading, row, metric in self.columns:
            rows = []
            for method in drawn:
                mean, std = method.value(row, metric)
                ends = self.boot.interval(method.name, row, metric) or (mean - std, mean + std)
                rows.append((mean, *ends))
            panels[heading] = np.array(rows)
        tints = {one.label: self.tint.get(one.label, figures.OTHER) for one in drawn}
        svg = figures.methods(panels, tints, [one.published for one in drawn])
        caption = "All methods, best near-OOD AUROC first. "
        caption += "Bars: 95 % confidence intervals over images. " if self.boot.values else ""
        caption += "Bars: standard deviation over training runs. " if self.several else ""
        caption += "Hollow: published, not run here." if any(one.published for one in drawn) else ""
        return [self.draw(svg, caption, f"methods_{self.run.scheme}")]

    def curves(self) -> list[Drawing]:
        """Draw the ROC curves, and the distributions of the scores, three methods in a row."""
        run = self.run
        curves = {one.label: self.scores[one.name] for one in self.ranked if one.name in self.scores}
        if not curves:
            return []
        seed = " (of the first training run)" if self.several else ""
        caption = f"ROC curves{seed}. FPR@95 is where a curve crosses the dashed line."
        made = [self.draw(figures.rocs(curves, run.sets, self.tint), caption, f"roc_{run.scheme}")]
        panels = [(label, own, score_kept(np.sort(own["id"]), TPR)) for label, own in curves.items()]
        for start in range(0, len(panels), 3):
            some = panels[start : start + 3]
            caption = (
                f"Scores{seed}: {', '.join(label for label, *_ in some)}. Larger is more in-distribution. Thick: median "
                "of a set, dashed: threshold that accepts 95 % of the ID images."
            )
            made.append(
                self.draw(figures.ridges(some, run.near), caption, f"scores_{run.scheme}_{start // 3 + 1}")
            )
        return made

    def table(self, title: str, columns: list[tuple[str, str, str]], intervals: bool = False) -> Table:
        """Return a table with a row per method; a column is its heading, row of the result tables, and metric."""
        rows = [([Cell(one.label)], one.published) for one in self.methods]
        for _, row, metric in columns:
            sign = -1 if metric == "FPR@95" else 1
            values = {one.name: sign * round(one.value(row, metric)[0], 2) for one in self.run.methods}
            values = {name: value for name, value in values.items() if not math.isnan(value)}
            top = max(values, key=values.__getitem__, default="")
            for method, (cells, _) in zip(self.methods, rows, strict=True):
                mark, own = "", values.get(method.name)
                if own is not None and len({*values.values()}) > 1:
                    equal = self.boot.equal(top, method.name, row, metric)
                    mark = "best" if own == values[top] else "equal" if equal else ""
                mean, std = method.value(row, metric)
                text = "–" if math.isnan(mean) else f"{mean:.2f}"
                text += "" if math.isnan(std) else f" ± {std:.2f}"
                cells.append(Cell(text, mark, _interval(self.boot.interval(method.name, row, metric))))
        return Table(title, ["Method", *(heading for heading, *_ in columns)], rows, intervals)

    def observed(self, method: MethodResult) -> dict[str, Any] | None:
        """Return :func:`observation` with a figure."""
        run, found = self.run, observation(self.run, method)
        if found is None:
            return None
        values = {"Q' (OODness)": "oodness", "percentile p": "percentile"}
        panels = []
        for quantity, kind in values.items():
            own = run.values(method, kind)
            panels.append((quantity, own, float(np.median(own["id"]))))
        caption = (
            f"{method.label}: distribution of {' and of the '.join(values)}. Thick: median of a set, dashed: median of "
            "the ID images."
        )
        svg = figures.ridges(panels, run.near)
        return {**found, "figure": self.draw(svg, caption, f"observation_{run.scheme}_{method.label}")}

    def search(self, label: str, search: pd.DataFrame) -> Drawing | Table:
        """Return a search as a heat map over percentiles, or as a table of its best candidates."""
        table = search.astype({"auroc": float})
        if not table["auroc"].between(0, 100).all():
            raise ValueError("auroc: expected percentages")
        if "percentile" in table:
            ends = table["percentile"].astype(str).str.extract(r"^\W*([\d.]+),\s*([\d.]+)\W*$").astype(float)
            if ends.notna().all(axis=None):
                table = table.drop(columns="percentile").assign(p_min=ends[0], p_max=ends[1])
        best = table.sort_values("auroc", ascending=False, kind="stable")
        searched = [str(name) for name in table if name != "auroc" and table[name].astype(str).nunique() > 1]
        if {"p_min", "p_max"} <= {*table} and 1 < max(table[["p_min", "p_max"]].nunique()) <= _LARGEST_MAP:
            aurocs = table.pivot_table(index="p_min", columns="p_max", values="auroc", aggfunc="max")
            top, fixed = best.iloc[0], best[best["p_min"] == best["p_max"]]
            caption = (
                f"{label}: AUROC on validation images (%), best {top['auroc']:.2f} at p_min {top['p_min']:g}, p_max "
                f"{top['p_max']:g} (framed)"
            )
            if len(fixed):
                one = fixed.iloc[0]
                caption += f"; best fixed percentile (dotted) {one['auroc']:.2f} at {one['p_min']:g}"
            if more := [name for name in searched if name not in ("p_min", "p_max")]:
                caption += f"; each cell is the best over {', '.join(more)}"
            return self.draw(figures.search_map(aurocs), f"{caption}.", f"search_{label}")
        few = best.head(_MAX_CANDIDATES)
        title = f"{label}: AUROC on validation images (%) ↑"
        title += f", the best {len(few)} of {len(best)} candidates" if len(few) < len(best) else ""
        names = searched or [str(name) for name in table if name != "auroc"]
        rows = [
            [*(row[name] for name in names), Cell(f"{row['auroc']:.2f}", "" if place else "best")]
            for place, row in enumerate(few.to_dict("records"))
        ]
        return _text_table(title, [*names, "AUROC"], rows)

    def settings(self) -> list[Table]:
        """Return the settings of the evaluation and of each method."""
        groups = [("evaluation", self.run.settings), *((one.label, one.settings) for one in self.run.methods)]
        rows = [(group, name, value) for group, settings in groups for name, value in settings.items()]
        return [_text_table("Settings", ["Of", "Setting", "Value"], rows)] if rows else []


def _text_table(title: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> Table:
    def cell(value: Any) -> Cell:
        if isinstance(value, Cell):
            return value
        return Cell(f"{value:g}" if isinstance(value, float) else shortened(str(value), 60))

    return Table(title, columns, [([*map(cell, row)], False) for row in rows])


def _interval(found: tuple[float, float] | None, sign: str = "", to: str = "–") -> str:
    return "" if found is None else f"{found[0]:{sign}.2f}{to}{found[1]:{sign}.2f}"


def _listed(names: Sequence[str]) -> str:
    few = names if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return " and ".join(filter(None, (", ".join(few[:-1]), few[-1])))


def observation(run: Run, method: MethodResult) -> dict[str, Any] | None:
    """Check the paper's observation on a run: ID images move less, and so their percentile is higher.

    Returns:
        ``label``, ``holds`` (by OOD set) and ``sentences``; None if the method has no Q' and percentiles.
    """
    q, p = (
        {key: float(np.median(part)) for key, part in run.values(method, kind).items()}
        for kind in ("oodness", "percentile")
    )
    sets = [key for key in run.sets if key in q and key in p]
    if not sets or not ("id" in q and "id" in p):
        return None
    holds = {key: q[key] > q["id"] for key in sets}
    good, bad = ([key for key in sets if holds[key] is value] for value in (True, False))
    sentences = []

    def spread(values: Mapping[str, float], keys: Sequence[str]) -> str:
        ends = dict.fromkeys(f"{edge(values[key] for key in keys):.4g}" for edge in (min, max))
        return " to ".join(ends)

    if good:
        sentences.append(
            f"The paper's observation holds for {_listed(good) if bad else 'every OOD set'}: under the perturbation ID "
            f"images move less, and so their percentile is higher (median Q' {q['id']:.4g} against {spread(q, good)}; "
            f"median p {p['id']:.4g} against {spread(p, good)})."
        )
    if bad:
        sentences.append(
            f"The paper's observation does not hold for {_listed(bad) if good else 'any OOD set'} (median Q' "
            f"{spread(q, bad)}, of the ID images {q['id']:.4g}): these images do not move more than ID images. Their "
            f"percentile is at least as high, they are scaled at least as much, and so {method.label} does not help there."
        )
    everything = run.images[f"percentile_{method.name}"]
    if everything.max() - everything.min() < 1e-9:
        sentences.append(
            f"The percentile is fixed at {everything.max():g} (p_min = p_max), so that Q' has no influence."
        )
    return {"label": method.label, "holds": holds, "sentences": sentences}

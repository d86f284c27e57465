"""The report of a run: one HTML page that needs nothing else, and Markdown with SVG figures."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from .gallery import TPR, chosen_pair, gallery
from .names import AVERAGES, file_names, shortened
from .reference import baselines, parse_reference
from .run import MethodResult, Run
from .statistics import METRICS, Bootstrap, bootstrap

MAX_IMAGES = 8
_MAX_CANDIDATES, _LARGEST_MAP = 20, 60
_ARROWS = {"FPR@95": "↓", "AUROC": "↑"}
_TITLES = {"ood": "OOD detection", "fsood": "Full-spectrum OOD detection"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    mark: str = ""
    """``best``, ``equal`` to the best, or nothing."""
    interval: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    columns: list[str]
    rows: list[tuple[list[Cell], bool]]
    """Cells, and True for published results."""
    intervals: bool = False
    """Print the intervals in the cells."""


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption."""

    svg: Markup
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
    if not runs:
        raise ResultError("runs: []; expected at least one run")
    pair = _pair([one for run in runs for one in run.methods], compare_methods, max_images, reference)
    folder = Path(folder)
    files: dict[str, str] = {}

    def draw(svg: str, caption: str, name: str) -> Drawing:
        file = file_names([*(one.removesuffix(".svg") for one in files), name])[-1] + ".svg"
        files[file] = svg
        return Drawing(Markup(svg), printable(caption.strip()), file)

    chapters = [_chapter(run, pair, max_images, reference, draw) for run in runs]
    first = runs[0]
    title = " · ".join(filter(None, (first.id, first.network))) or first.title or "Results"
    counts = first.images["set"].value_counts()
    id_count = counts.get("id", 0)
    images = f"{id_count:,} ID and {counts.sum() - id_count:,} OOD images" if id_count else ""
    version = f"openood-adascale {first.version}"
    facts = [first.title if first.title != title else "", images, first.date[:10], version]
    script = _source("script.js")
    context = {
        "title": printable(title),
        "facts": [printable(fact) for fact in facts if fact],
        "chapters": chapters,
        "style": Markup(_source("style.css")),
        "script": Markup(script),
        "hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    for name, text in files.items():
        _put(folder, f"figures/{name}", text.replace("<svg ", '<svg style="background: #ffffff" ', 1))
    _put(folder, "report.md", _environment().get_template("report.md.j2").render(context))
    return _put(folder, "index.html", _environment().get_template("index.html.j2").render(context))


def check_options(
    methods: Sequence[str],
    compare_methods: Sequence[str] | None = None,
    max_images: int = MAX_IMAGES,
    reference: str | None = None,
) -> None:
    """Check the options of :func:`write_report` before the methods are evaluated.

    Args:
        methods: Names of the methods.
        compare_methods: This and the others as for :func:`write_report`.
        max_images: See there.
        reference: See there.

    Raises:
        ResultError: If an option is not allowed.
    """
    _pair([MethodResult(name, pd.DataFrame()) for name in methods], compare_methods, max_images, reference)


def _pair(
    methods: Sequence[MethodResult],
    compare_methods: Sequence[str] | None,
    max_images: int,
    reference: str | None,
) -> tuple[str, str] | None:
    """Check the options and return the labels of the methods to compare."""
    if isinstance(max_images, bool) or not isinstance(max_images, int) or max_images < 0:
        raise ResultError(f"max-images: {max_images!r}; expected a whole number, 0 or more")
    parse_reference(reference)
    return chosen_pair(methods, compare_methods) if compare_methods else None


def _put(root: Path, name: str, text: str) -> Path:
    """Write a file and rename it, so that a link in its place is replaced and not followed."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise ResultError(f"{path.parent}: leads to {path.parent.resolve()}; expected a folder inside {root}")
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    return path


# The templates.


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("openood_adascale.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = markdown
    environment.filters["inline"] = lambda svg: Markup(figures.inline(str(svg)))
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


def _chapter(
    run: Run, pair: tuple[str, str] | None, max_images: int, reference: str | None, draw: _Draw
) -> dict[str, Any]:
    """Return everything that the templates show of a run."""
    published, sources = baselines(run, parse_reference(reference, run))
    methods = Run([*run.methods, *published], run.near, run.far, run.scheme).ranked()
    several = any(method.std is not None for method in run.methods)
    scores = {one.name: found for one in run.ranked() if len(found := run.values(one)) > 1 and "id" in found}
    boot = bootstrap({} if several else scores, run.near, run.far)
    notes = [*run.notes, *sources]
    if not boot.values and len(run.methods) > 1:
        why = "the tables are means over training runs" if several else "the run has no scores of each image"
        notes.append(f"No confidence intervals over images: {why}.")
    shot = gallery(run, pair, max_images) if max_images else None
    notes += shot.notes if shot else []
    tint = figures.colours([method.label for method in run.ranked()])
    averages, sets = _tables(run, methods, boot)
    searches = [_search(one.label, one.search, draw, notes) for one in run.methods if one.search is not None]
    return {
        "id": run.scheme,
        "title": _TITLES[run.scheme],
        "best": [tile for side in ("near", "far") if (tile := _best(run, side, boot))],
        "overview": _overview(run, methods, boot, tint, several, draw),
        "averages": averages,
        "sets": sets,
        "curves": _curves(run, scores, tint, several, draw),
        "gallery": shot if shot and shot.methods else None,
        "adascale": [seen for method in run.ranked() if (seen := _observed(run, method, draw))],
        "searches": sorted(filter(None, searches), key=lambda one: isinstance(one, Table)),  # heat maps first
        "settings": _settings(run),
        "notes": [printable(note) for note in dict.fromkeys(notes)],
    }


def _interval(found: tuple[float, float] | None, sign: str = "", to: str = "–") -> str:
    return "" if found is None else f"{found[0]:{sign}.2f}{to}{found[1]:{sign}.2f}"


def _best(run: Run, side: str, boot: Bootstrap) -> dict[str, str] | None:
    """Say which method is best on one side, by how much, and if that is more than chance."""
    row = f"{side}ood"
    values = {one.name: round(one.value(row, "AUROC")[0], 2) for one in run.methods}
    order = sorted((name for name in values if not math.isnan(values[name])), key=lambda name: -values[name])
    if not order:
        return None
    label = {one.name: printable(one.label) for one in run.methods}
    best, others = order[0], order[1:]
    fpr = next(one for one in run.methods if one.name == best).value(row, "FPR@95")[0]
    text = ""
    if others:
        text = f"{values[best] - values[others[0]]:.2f} points above {label[others[0]]}. "
        found = boot.difference(best, others[0], row, "AUROC")
        equal = [label[name] for name in others if boot.equal(best, name, row, "AUROC")]
        if equal:
            text += f"Not distinguishable from {_listed(equal)}: the difference can be chance."
        elif found:
            text += (
                f"More than chance: the 95 % interval of the difference is {_interval(found, '+', ' to ')}."
            )
        else:
            text += "Without scores of each image it is unknown if that is more than chance."
    interval = _interval(boot.interval(best, row, "AUROC"))
    return {
        "side": f"{side}-OOD", "label": label[best], "value": f"{values[best]:.2f}",
        "interval": interval, "fpr": f"{fpr:.2f}", "text": text,
    }  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    few = names if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return " and ".join(filter(None, (", ".join(few[:-1]), few[-1])))


def _overview(
    run: Run,
    methods: Sequence[MethodResult],
    boot: Bootstrap,
    tint: Mapping[str, str],
    several: bool,
    draw: _Draw,
) -> list[Drawing]:
    drawn = [one for one in methods if any(one.value(row, "AUROC")[0] >= 0 for row in AVERAGES)]
    if not drawn:
        return []
    panels = {}
    for side, metric in itertools.product(("near", "far"), METRICS):
        rows = []
        for method in drawn:
            mean, std = method.value(f"{side}ood", metric)
            ends = boot.interval(method.name, f"{side}ood", metric) or (mean - std, mean + std)
            rows.append((mean, *ends))
        panels[f"{side.capitalize()}-OOD {metric} {_ARROWS[metric]}"] = np.array(rows)
    labels = {printable(one.label): tint.get(one.label, figures.OTHER) for one in drawn}
    svg = figures.methods(panels, labels, [one.published for one in drawn])
    caption = "All methods, best near-OOD AUROC first. "
    caption += "Bars: 95 % confidence intervals over images. " if boot.values else ""
    caption += "Bars: standard deviation over training runs. " if several else ""
    caption += "Hollow: published, not run here." if any(one.published for one in drawn) else ""
    return [draw(svg, caption, f"methods_{run.scheme}")]


def _curves(
    run: Run,
    scores: Mapping[str, Mapping[str, np.ndarray]],
    tint: Mapping[str, str],
    several: bool,
    draw: _Draw,
) -> list[Drawing]:
    """Draw the ROC curves, and the distributions of the scores, three methods in a row."""
    curves = {one.label: scores[one.name] for one in run.ranked() if one.name in scores}
    if not curves:
        return []
    seed = " (of the first training run)" if several else ""
    caption = f"ROC curves{seed}. FPR@95 is where a curve crosses the dashed line."
    made = [draw(figures.rocs(curves, run.near, run.far, tint), caption, f"roc_{run.scheme}")]
    panels = [(label, own, score_kept(np.sort(own["id"]), TPR)) for label, own in curves.items()]
    for start in range(0, len(panels), 3):
        some = panels[start : start + 3]
        caption = (
            f"Scores{seed}: {', '.join(label for label, *_ in some)}. Larger is more in-distribution. Thick: median of a "
            "set, dashed: threshold that accepts 95 % of the ID images."
        )
        made.append(draw(figures.ridges(some, run.near), caption, f"scores_{run.scheme}_{start // 3 + 1}"))
    return made


def _tables(run: Run, methods: Sequence[MethodResult], boot: Bootstrap) -> tuple[list[Table], list[Table]]:
    """Return the table of averages, and the tables per OOD set."""
    sides = [side for side in ("near", "far") if getattr(run, side)]
    if not sides:
        return [], []
    columns = [
        (f"{side.capitalize()} {metric} {_ARROWS[metric]}", f"{side}ood", metric)
        for side in sides
        for metric in METRICS
    ]
    columns.append(("ID accuracy ↑", f"{sides[-1]}ood", "ACC"))
    averages = _table("Averages over the OOD sets (%)", methods, columns, boot, intervals=bool(boot.values))
    sets = []
    for metric in METRICS[::-1]:
        title = f"{metric} per OOD set (%) {_ARROWS[metric]}"
        sets.append(_table(title, methods, [(name, name, metric) for name in run.sets], boot))
    return [averages], sets


def _table(
    title: str,
    methods: Sequence[MethodResult],
    columns: list[tuple[str, str, str]],
    boot: Bootstrap,
    intervals: bool = False,
) -> Table:
    """Return a table with a row per method; a column is its heading, row of the result tables, and metric."""
    rows: list[tuple[list[Cell], bool]] = [([Cell(printable(one.label))], one.published) for one in methods]
    for _, row, metric in columns:
        values = {one.name: round(one.value(row, metric)[0], 2) for one in methods}
        measured = [one.name for one in methods if not one.published and not math.isnan(values[one.name])]
        order = sorted(measured, key=lambda name: values[name] * (1 if metric == "FPR@95" else -1))
        tied = [name for name in order if values[name] == values[order[0]]]
        for method, (cells, _) in zip(methods, rows, strict=True):
            mark = ""
            if method.name in measured and len(tied) < len(order):
                equal = boot.equal(order[0], method.name, row, metric)
                mark = "best" if method.name in tied else "equal" if equal else ""
            mean, std = method.value(row, metric)
            text = "–" if math.isnan(mean) else f"{mean:.2f}" + ("" if math.isnan(std) else f" ± {std:.2f}")
            cells.append(Cell(text, mark, _interval(boot.interval(method.name, row, metric))))
    return Table(title, ["Method", *(printable(heading) for heading, _, _ in columns)], rows, intervals)


def _observed(run: Run, method: MethodResult, draw: _Draw) -> dict[str, Any] | None:
    """Return :func:`observation` with a figure."""
    found = observation(run, method)
    if found is None:
        return None
    kinds = (("Q' (OODness)", "oodness"), ("percentile p", "percentile"))
    quantities = [(name, run.values(method, kind)) for name, kind in kinds]
    panels = [(name, part, float(np.median(part["id"]))) for name, part in quantities if "id" in part]
    caption = (
        f"{method.label}: distribution of {' and of the '.join(name for name, *_ in panels)}. Thick: median of a "
        "set, dashed: median of the ID images."
    )
    svg = figures.ridges(panels, run.near)
    return {**found, "figure": draw(svg, caption, f"observation_{run.scheme}_{method.label}")}


def observation(run: Run, method: MethodResult) -> dict[str, Any] | None:
    """Check the paper's observation on a run: ID images move less, and so their percentile is higher.

    Returns:
        ``label``, ``holds`` (by OOD set) and ``sentences``; None if the method has neither Q' nor percentiles.
    """
    p = {key: float(np.median(part)) for key, part in run.values(method, "percentile").items()}
    q = {key: float(np.median(part)) for key, part in run.values(method, "oodness").items()}
    name, sign, medians = ("Q'", 1, q) if "id" in q and len(q) > 1 else ("p", -1, p)
    sets = [key for key in run.sets if key in medians]
    if "id" not in medians or not sets:
        return None
    holds = {key: sign * medians[key] > sign * medians["id"] for key in sets}
    label, sentences = printable(method.label), []
    good, bad = ([key for key in sets if holds[key] is value] for value in (True, False))

    def spread(values: Mapping[str, float], keys: Sequence[str]) -> str:
        ends = dict.fromkeys(f"{edge(values[key] for key in keys):.4g}" for edge in (min, max))
        return " to ".join(ends)

    if good:
        where = _listed([printable(key) for key in good]) if bad else "every OOD set"
        told = f"median {name} {medians['id']:.4g} against {spread(medians, good)}"
        if name != "p" and {"id", *good} <= {*p}:
            told += f"; median p {p['id']:.4g} against {spread(p, good)}"
        sentences.append(
            f"The paper's observation holds for {where}: under the perturbation ID images move less, and so their "
            f"percentile is higher ({told})."
        )
    if bad:
        where = _listed([printable(key) for key in bad]) if good else "any OOD set"
        sentences.append(
            f"The paper's observation does not hold for {where} (median {name} {spread(medians, bad)}, of the ID images "
            f"{medians['id']:.4g}): these images do not move more than ID images. Their percentile is at least as high, "
            f"they are scaled at least as much, and so {label} does not help there."
        )
    everything = run.images.get(f"percentile_{method.name}", pd.Series(dtype=float))
    if everything.max() - everything.min() < 1e-9:
        sentences.append(
            f"The percentile is fixed at {everything.max():g} (p_min = p_max), so that Q' has no influence."
        )
    return {"label": label, "holds": holds, "sentences": sentences}


def _search(label: str, search: pd.DataFrame, draw: _Draw, notes: list[str]) -> Drawing | Table | None:
    """Return a search as a heat map over percentiles, or as a table of its best candidates."""
    table = search.map(lambda value: value if pd.api.types.is_scalar(value) else str(value))
    try:
        table["auroc"] = pd.to_numeric(table["auroc"])
        if table.empty or not table["auroc"].between(0, 100).all():
            raise ValueError("auroc: expected a percentage for every candidate")
    except (KeyError, TypeError, ValueError) as error:
        notes.append(f"{label}: search left out, it is no table of candidates with their auroc ({error})")
        return None
    if "percentile" in table:
        ends = table["percentile"].astype(str).str.extract(r"^\W*([\d.]+),\s*([\d.]+)\W*$").astype(float)
        if ends.notna().all(axis=None):
            table = table.drop(columns="percentile").assign(p_min=ends[0], p_max=ends[1])
    best = table.sort_values("auroc", ascending=False, kind="stable")
    searched = [str(name) for name in table if name != "auroc" and table[name].nunique() > 1]
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
        if more := [printable(name) for name in searched if name not in ("p_min", "p_max")]:
            caption += f"; each cell is the best over {', '.join(more)}"
        return draw(figures.search_map(aurocs), f"{caption}.", f"search_{label}")
    few = best.head(_MAX_CANDIDATES)
    title = f"{label}: AUROC on validation images (%) ↑"
    title += f", the best {len(few)} of {len(best)} candidates" if len(few) < len(best) else ""
    names = searched or [str(name) for name in table if name != "auroc"]
    rows = []
    for place, row in enumerate(few.to_dict("records")):
        auroc = Cell(f"{row['auroc']:.2f}", mark="" if place else "best")
        rows.append(([*(Cell(_value(row[name])) for name in names), auroc], False))
    return Table(printable(title), [*map(printable, names), "AUROC"], rows)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shortened(printable(str(value)), 60)


def _settings(run: Run) -> list[Table]:
    """Return the settings of the evaluation and of each method."""
    groups = [("evaluation", run.settings), *((one.label, one.settings) for one in run.methods)]
    rows = [
        ([Cell(printable(group)), Cell(printable(str(name))), Cell(_value(value))], False)
        for group, settings in groups
        for name, value in settings.items()
    ]
    return [Table("Settings", ["Of", "Setting", "Value"], rows)] if rows else []

"""The report of a run: one HTML page that needs nothing else, and Markdown with SVG figures."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

try:
    import jinja2
    from markupsafe import Markup

    from . import figures
except ModuleNotFoundError as error:
    if error.name not in ("jinja2", "markupsafe", "matplotlib"):
        raise
    message = f"a report needs {error.name}: pip install 'openood-adascale[plots]'"
    raise ImportError(message, name=error.name) from error

from ..errors import ResultError
from ..io import replacing
from ..metrics import score_kept
from .gallery import TPR, Gallery, chosen_pair, gallery
from .names import file_names, shortened, shown
from .reference import Baselines, baselines, parse_reference, published_name
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


@dataclass
class Chapter:
    """Everything that the templates show of a run."""

    id: str
    title: str
    best: list[dict[str, str]] = field(default_factory=list)
    overview: list[Drawing] = field(default_factory=list)
    averages: list[Table] = field(default_factory=list)
    sets: list[Table] = field(default_factory=list)
    curves: list[Drawing] = field(default_factory=list)
    gallery: Gallery | None = None
    adascale: list[dict[str, Any]] = field(default_factory=list)
    searches: list[Drawing | Table] = field(default_factory=list)
    published: list[Table] = field(default_factory=list)
    settings: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    pairs = _checked_options(runs, compare_methods, max_images, reference)
    folder = Path(folder)
    files: dict[str, str] = {}
    chapters = [
        _chapter(run, pair, max_images, reference, files) for run, pair in zip(runs, pairs, strict=True)
    ]
    first = runs[0]
    title = " · ".join(filter(None, (first.id, first.network))) or first.title or "Results"
    counts = {key: len(scores) for one in first.methods for key, scores in one.scores.items()}
    images = f"{counts.pop('id'):,} ID and {sum(counts.values()):,} OOD images" if "id" in counts else ""
    version = f"openood-adascale {first.version}"
    facts = [first.title if first.title != title else "", images, first.date[:10], version]
    script = _source("script.js")
    context = {
        "title": shown(title),
        "facts": [shown(fact) for fact in facts if fact],
        "chapters": chapters,
        "style": Markup(_source("style.css")),
        "script": Markup(script),
        "hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    for name, text in files.items():
        _put(folder, f"figures/{name}", text.replace("<svg ", '<svg style="background: #ffffff" ', 1))
    _put(folder, "report.md", _render("report.md.j2", context))
    return _put(folder, "index.html", _render("index.html.j2", context))


def check_options(
    methods: Sequence[str],
    compare_methods: Sequence[str] | None = None,
    max_images: int = MAX_IMAGES,
    reference: str | None = None,
) -> None:
    """Check the options of :func:`write_report` before the methods are evaluated.

    Args:
        methods: Names of the methods.
        compare_methods: As for :func:`write_report`.
        max_images: As for :func:`write_report`.
        reference: As for :func:`write_report`.

    Raises:
        ResultError: If an option is not allowed.
    """
    run = Run([MethodResult(name, pd.DataFrame()) for name in methods])
    _checked_options([run], compare_methods, max_images, reference)


def _checked_options(
    runs: Sequence[Run], compare_methods: Sequence[str] | None, max_images: int, reference: str | None
) -> list[tuple[str, str] | None]:
    if isinstance(max_images, bool) or not isinstance(max_images, int) or max_images < 0:
        raise ResultError(f"max-images: {max_images!r}; expected a whole number, 0 or more")
    parse_reference(reference)
    pairs: list[tuple[str, str] | None] = []
    errors = []
    for run in runs:
        try:
            pairs.append(chosen_pair(run, compare_methods))
        except ResultError as error:
            errors.append(error)
            pairs.append(None)
    if not runs or len(errors) == len(runs):
        raise errors[0] if errors else ResultError("runs: []; expected at least one run")
    return pairs


def _put(root: Path, name: str, text: str) -> Path:
    """Write a file and rename it, so that a link in its place is replaced and not followed."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise ResultError(f"{path.parent}: leads to {path.parent.resolve()}; expected a folder inside {root}")
    with (
        replacing(path) as beside,
        beside.open("x", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        file.write(text)
    return path


# The templates.


def _environment() -> tuple[jinja2.Environment, jinja2.BaseLoader]:
    loader = jinja2.PackageLoader("openood_adascale.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["md"] = markdown
    environment.filters["inline"] = lambda svg: Markup(figures.inline(str(svg)))
    environment.tests["drawing"] = lambda value: isinstance(value, Drawing)
    return environment, loader


def _source(name: str) -> str:
    environment, loader = _environment()
    return loader.get_source(environment, name)[0].replace("\r\n", "\n")  # as browsers see it, for the hash


def _render(template: str, context: Mapping[str, Any]) -> str:
    return _environment()[0].get_template(template).render(context)


def markdown(text: str) -> Markup:
    """Escape text for one line of Markdown, GitHub's included."""
    text = re.sub(r"[\\`*_\[\]|~$#]", r"\\\g<0>", shown(str(text)))
    # At the start of an item or cell these would begin a list or heading.
    text = re.sub(r"^(\d*)([-+=.)])(?=\s|$)", r"\1\\\2", text)
    return Markup(html.escape(text, quote=False))


# The contents.


def _chapter(
    run: Run, pair: tuple[str, str] | None, max_images: int, reference: str | None, files: dict[str, str]
) -> Chapter:
    found = baselines(run, parse_reference(reference, run))
    among = Run([*run.methods, *found.methods], run.near, run.far, run.scheme).ranked()
    several = any(method.std is not None for method in run.methods)
    scores = {
        one.name: one.scores for one in run.methods if "id" in one.scores and one.scores.keys() & {*run.sets}
    }
    boot = bootstrap({} if several else scores, run.near, run.far)
    made = Chapter(run.scheme, _TITLES[run.scheme], notes=[*run.notes, *found.notes])
    made.best = [tile for side in ("near", "far") if (tile := _best(run, side, boot))]
    tint = figures.colours([method.label for method in run.ranked()])

    def draw(svg: str, caption: str, name: str) -> Drawing:
        file = file_names([*(one.removesuffix(".svg") for one in files), name])[-1] + ".svg"
        files[file] = svg
        return Drawing(Markup(svg), shown(caption.strip()), file)

    caption = "All methods, best near-OOD AUROC first. "
    caption += "Bars: 95 % confidence intervals over images. " if boot.values else ""
    caption += "Bars: standard deviation over training runs. " if several else ""
    caption += "Hollow: published, not run here." if found.methods else ""
    drawn = [method for method in among if not math.isnan(method.value("nearood", "AUROC")[0])
             or not math.isnan(method.value("farood", "AUROC")[0])]  # fmt: skip
    if drawn:
        made.overview = [draw(_overview(drawn, boot, tint), caption, f"methods_{run.scheme}")]
    made.averages, made.sets = _tables(run, among, boot)
    curves = {one.label: one.scores for one in run.ranked() if one.name in scores}
    if curves:
        seed = " (of the first training run)" if several else ""
        caption = (
            f"ROC curves{seed}, legend: AUROC in percent. FPR@95 is where a curve crosses the dashed line."
        )
        made.curves.append(draw(figures.rocs(curves, run.near, run.far, tint), caption, f"roc_{run.scheme}"))
        panels = [
            (
                label,
                {key: own[key] for key in ("id", *run.sets) if key in own},
                score_kept(np.sort(own["id"]), TPR),
            )
            for label, own in curves.items()
        ]
        for start in range(0, len(panels), 3):
            some = panels[start : start + 3]
            caption = (
                f"Scores{seed}: {', '.join(label for label, *_ in some)}. Larger is more in-distribution. Thick: median of "
                "a set, dashed: threshold that accepts 95 % of the ID images."
            )
            made.curves.append(
                draw(figures.ridges(some, run.near), caption, f"scores_{run.scheme}_{start // 3 + 1}")
            )
    if max_images:
        found_images = gallery(run, pair, max_images)
        made.notes += found_images.notes
        made.gallery = found_images if found_images.methods else None
    for method in run.ranked():
        if seen := observation(run, method):
            quantities = [("Q' (OODness)", method.oodness), ("percentile p", method.percentiles)]
            panels = [(name, part, float(np.median(part["id"]))) for name, part in quantities if "id" in part]
            caption = (
                f"{method.label}: distribution of {' and of the '.join(name for name, *_ in panels)}. Thick: median of a "
                "set, dashed: median of the ID images."
            )
            svg = figures.ridges(panels, run.near)
            made.adascale.append(
                {**seen, "figure": draw(svg, caption, f"observation_{run.scheme}_{method.label}")}
            )
    searches = [
        _search(one.label, one.search, draw, made.notes) for one in run.methods if one.search is not None
    ]
    made.searches = sorted(filter(None, searches), key=lambda one: isinstance(one, Table))  # heat maps first
    made.published = _published_averages(found, run)
    made.settings = _settings(run)
    if not boot.values and len(run.methods) > 1:
        reason = (
            "the tables are means over training runs" if several else "the run has no scores of each image"
        )
        made.notes.append(f"No confidence intervals over images: {reason}.")
    made.notes = [shown(note) for note in dict.fromkeys(made.notes)]
    return made


def _interval(found: tuple[float, float] | None, sign: str = "", to: str = "–") -> str:
    return "" if found is None else f"{found[0]:{sign}.2f}{to}{found[1]:{sign}.2f}"


def _best(run: Run, side: str, boot: Bootstrap) -> dict[str, str] | None:
    """Say which method is best on one side, by how much, and if that is more than chance."""
    row = f"{side}ood"
    values = {one.name: round(one.value(row, "AUROC")[0], 2) for one in run.methods}
    order = sorted((name for name in values if not math.isnan(values[name])), key=lambda name: -values[name])
    if not order:
        return None
    label = {one.name: shown(one.label) for one in run.methods}
    best, others = order[0], order[1:]
    fpr = next(one for one in run.methods if one.name == best).value(row, "FPR@95")[0]
    text = ""
    if others:
        ahead = f"{values[best] - values[others[0]]:.2f} points above {label[others[0]]}"
        found = boot.difference(best, others[0], row, "AUROC")
        equal = [label[name] for name in others if boot.equal(best, name, row, "AUROC")]
        if equal:
            text = f"{ahead}. Not distinguishable from {_listed(equal)}: the difference can be chance."
        elif found:
            text = f"{ahead}. More than chance: the 95 % interval of the difference is {_interval(found, '+', ' to ')}."
        else:
            text = f"{ahead}. Without scores of each image it is unknown if that is more than chance."
    interval = _interval(boot.interval(best, row, "AUROC"))
    return {
        "side": f"{side}-OOD", "label": label[best], "value": f"{values[best]:.2f}",
        "interval": interval, "fpr": f"{fpr:.2f}", "text": text,
    }  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    few = names if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return " and ".join(filter(None, (", ".join(few[:-1]), few[-1])))


def _overview(methods: Sequence[MethodResult], boot: Bootstrap, tint: Mapping[str, str]) -> str:
    columns = pd.MultiIndex.from_product([("near", "far"), ("FPR@95", "AUROC")])
    cells = []
    for method in methods:
        for side, metric in columns:
            mean, std = method.value(f"{side}ood", metric)
            found = boot.interval(method.name, f"{side}ood", metric) or (mean - std, mean + std)
            cells.append((mean, *found))
    shape = (len(methods), len(columns))
    labels = [shown(method.label) for method in methods]
    mean, low, high = (
        pd.DataFrame(np.array([cell[part] for cell in cells]).reshape(shape), labels, columns)
        for part in range(3)
    )
    tints = [tint.get(method.label, figures.OTHER) for method in methods]
    return figures.methods(mean, low, high, tints, [method.published for method in methods])


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
    averages = _table("Averages over the OOD sets (%)", methods, columns, boot)
    sets = [
        _table(
            f"{metric} per OOD set (%) {_ARROWS[metric]}",
            methods,
            [(name, name, metric) for name in run.sets],
            boot,
        )
        for metric in METRICS[::-1]
    ]
    return [replace(averages, intervals=bool(boot.values))], sets


def _table(
    title: str, methods: Sequence[MethodResult], columns: list[tuple[str, str, str]], boot: Bootstrap
) -> Table:
    """Return a table with a row per method; a column is its heading, row of the result tables, and metric."""
    rows: list[tuple[list[Cell], bool]] = [([Cell(shown(one.label))], one.published) for one in methods]
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
    return Table(title, ["Method", *(shown(heading) for heading, _, _ in columns)], rows)


def observation(run: Run, method: MethodResult) -> dict[str, Any] | None:
    """Check the paper's observation on a run: ID images move less, and so their percentile is higher.

    Returns:
        ``label``, ``holds`` (by OOD set) and ``sentences``; None if the method has neither Q' nor percentiles.
    """
    quantity = next(
        (part for part in (method.oodness, method.percentiles) if "id" in part and len(part) > 1), None
    )
    if quantity is None:
        return None
    medians = {key: float(np.median(values)) for key, values in quantity.items()}
    percentiles = {key: float(np.median(values)) for key, values in method.percentiles.items()}
    sign = 1 if quantity is method.oodness else -1
    name = "Q'" if sign == 1 else "p"
    sets = [key for key in run.sets if key in medians]
    holds = {key: sign * medians[key] > sign * medians["id"] for key in sets}
    label, sentences = shown(method.label), []
    good, bad = ([key for key in sets if holds[key] is value] for value in (True, False))

    def spread(values: Mapping[str, float], keys: Sequence[str]) -> str:
        low, high = (f"{edge(values[key] for key in keys):.4g}" for edge in (min, max))
        return low if low == high else f"{low} to {high}"

    if good:
        where = "every OOD set" if not bad else _listed([shown(key) for key in good])
        both = [(name, medians)] + (
            [("p", percentiles)] if sign == 1 and {"id", *good} <= {*percentiles} else []
        )
        told = "; ".join(
            f"median {what} {values['id']:.4g} against {spread(values, good)}" for what, values in both
        )
        sentences.append(
            f"The paper's observation holds for {where}: under the perturbation ID images move less, and so their "
            f"percentile is higher ({told})."
        )
    if bad:
        where = "any OOD set" if not good else _listed([shown(key) for key in bad])
        sentences.append(
            f"The paper's observation does not hold for {where} (median {name} {spread(medians, bad)}, of the ID images "
            f"{medians['id']:.4g}): these images do not move more than ID images. Their percentile is at least as high, "
            f"they are scaled at least as much, and so {label} does not help there."
        )
    everything = np.concatenate(list(method.percentiles.values())) if method.percentiles else np.zeros(0)
    if len(everything) and np.ptp(everything) < 1e-9:
        sentences.append(
            f"The percentile is fixed at {everything[0]:g} (p_min = p_max), so that Q' has no influence."
        )
    return {"label": label, "holds": holds, "sentences": sentences}


def _search(label: str, search: pd.DataFrame, draw: Any, notes: list[str]) -> Any:
    """Return a search as a heat map over percentiles, or as a table of its best candidates."""
    table = search.map(lambda value: value if pd.api.types.is_scalar(value) else str(value))
    try:
        table["auroc"] = pd.to_numeric(table["auroc"])
        if "p_min" not in table and "percentile" in table:
            pairs = table["percentile"].astype(str).str.findall(r"(?<![\w.])\d+\.?\d*(?:[eE][-+]?\d+)?")
            if (pairs.map(len) == 2).all():
                table = table.drop(columns="percentile")
                table["p_min"], table["p_max"] = pairs.str[0], pairs.str[1]
        if {"p_min", "p_max"} <= {*table}:
            table[["p_min", "p_max"]] = table[["p_min", "p_max"]].astype(float)
        if table.empty or not table["auroc"].between(0, 100).all():
            raise ValueError("auroc: expected a percentage for every candidate")
    except (KeyError, TypeError, ValueError) as error:
        notes.append(f"{label}: search left out, it is no table of candidates with their auroc ({error})")
        return None
    searched = [str(name) for name in table if name != "auroc" and table[name].nunique() > 1]
    best = table.sort_values("auroc", ascending=False, kind="stable")
    if {"p_min", "p_max"} <= {*table} and 1 < max(
        table["p_min"].nunique(), table["p_max"].nunique()
    ) <= _LARGEST_MAP:
        aurocs = table.pivot_table(index="p_min", columns="p_max", values="auroc", aggfunc="max")
        top = best.iloc[0]
        caption = (
            f"{label}: AUROC on validation images (%), best {top['auroc']:.2f} at p_min {top['p_min']:g}, p_max "
            f"{top['p_max']:g} (framed)"
        )
        fixed = best[best["p_min"] == best["p_max"]]
        if len(fixed):
            caption += (
                f"; best fixed percentile (dotted) {fixed['auroc'].iloc[0]:.2f} at {fixed['p_min'].iloc[0]:g}"
            )
        if more := [shown(name) for name in searched if name not in ("p_min", "p_max")]:
            caption += f"; each cell is the best over {', '.join(more)}"
        return draw(figures.search_map(aurocs), f"{caption}.", f"search_{label}")
    few = best.head(_MAX_CANDIDATES)
    title = f"{label}: AUROC on validation images (%) ↑"
    title += f", the best {len(few)} of {len(best)} candidates" if len(few) < len(best) else ""
    names = searched or [str(name) for name in table if name != "auroc"]
    rows = [
        (
            [
                *(Cell(_value(row[name])) for name in names),
                Cell(f"{row['auroc']:.2f}", mark="" if place else "best"),
            ],
            False,
        )
        for place, row in enumerate(few.to_dict("records"))
    ]
    return Table(shown(title), [*map(shown, names), "AUROC"], rows)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shortened(shown(str(value)), 60)


def _published_averages(found: Baselines, run: Run) -> list[Table]:
    if found.averages is None:
        return []
    own = {published_name(one.label) for one in run.methods}
    rows = []
    for name, values in found.averages.iterrows():
        cells = ["–" if math.isnan(value) else f"{value:.2f}" for value in values]
        label = f"{name} (published{'; also run here' if name in own else ''})"
        rows.append(([Cell(label), *map(Cell, cells)], True))
    columns = ["Method", "Near FPR@95 ↓", "Near AUROC ↑", "Far FPR@95 ↓", "Far AUROC ↑"]
    title = (
        "Published averages (%) over other OOD sets, not comparable with the averages above (near: SSB-hard, NINCO, "
        "ImageNet-O; far: iNaturalist, OpenImage-O, Textures, Places)"
    )
    return [Table(title, columns, rows)]


def _settings(run: Run) -> list[Table]:
    """Return the settings of the evaluation and of each method."""
    groups = [("evaluation", run.settings), *((one.label, one.settings) for one in run.methods)]
    rows = [
        ([Cell(shown(group)), Cell(shown(str(name))), Cell(_value(value))], False)
        for group, settings in groups
        for name, value in settings.items()
    ]
    return [Table("Settings", ["Of", "Setting", "Value"], rows)] if rows else []

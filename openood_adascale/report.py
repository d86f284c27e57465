"""A run on one page, as ``openood-adascale report`` writes it; Markdown and leaderboard entries beside it."""

from __future__ import annotations

import argparse
import base64
import html
import json
import math
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from . import pictures
from .results import ResultError
from .runs import NAMES, Method, Run, collect

#: What OpenOOD's leaderboard asks of an entry, in its order and spelling.
LEADERBOARD_FIELDS = (
    "Training",
    "Postprocessor",
    "Near-OOD_AUROC",
    "Far-OOD_AUROC",
    "ID_Accuracy",
    "Outlier_Data",
    "Arch",
    "Additional_Description",
)
# How the leaderboard spells networks.
_ARCHS = {
    "resnet18_32x32": "ResNet18",
    "resnet18_224x224": "ResNet18",
    "resnet50": "ResNet50",
    "resnet50-ISH": "ResNet50",
    "regnet-y-16gf": "RegNet_Y_16GF",
    "vit-b-16": "ViT-B/16",
    "swin-t": "Swin-T",
    "swin-b": "Swin-B",
}
_SCHEME_TITLES = {"ood": "OOD detection", "fsood": "Full-spectrum OOD detection"}


@dataclass(frozen=True)
class _Table:
    title: str
    columns: list[str]
    rows: list[list[tuple[str, bool]]]  # text, and whether it is the best of its column


def _number(value: float, std: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.2f}" + ("" if math.isnan(std) else f" ± {std:.2f}")


def _table(title: str, methods: list[Method], cells: list[tuple[str, str, str]]) -> _Table:
    """``cells``: for each column its heading, row of the result table and metric."""
    rows = [[(method.label, False)] for method in methods]
    for _, row, metric in cells:
        values = [method.value(row, metric) for method in methods]
        rounded = [round(mean, 2) for mean, _ in values if not math.isnan(mean)]
        best = (min if metric == "FPR@95" else max)(rounded) if len(set(rounded)) > 1 else None
        for line, (mean, std) in zip(rows, values, strict=True):
            line.append((_number(mean, std), best is not None and round(mean, 2) == best))
    return _Table(title, ["Method", *(heading for heading, _, _ in cells)], rows)


def _tables(methods: list[Method]) -> list[_Table]:
    averages = [
        (f"{side} {metric} {arrow}", f"{side.lower()}ood", metric)
        for side in ("Near", "Far")
        for metric, arrow in (("FPR@95", "↓"), ("AUROC", "↑"))
    ]
    last = "farood" if any("farood" in method.mean.index for method in methods) else "nearood"
    sets = [
        *dict.fromkeys(name for m in methods for name in m.near),
        *dict.fromkeys(name for m in methods for name in m.far),
    ]
    return [
        _table("Averages (%)", methods, [*averages, ("ID accuracy ↑", last, "ACC")]),
        _table("AUROC per OOD set (%) ↑", methods, [(name, name, "AUROC") for name in sets]),
        _table("FPR@95 per OOD set (%) ↓", methods, [(name, name, "FPR@95") for name in sets]),
    ]


def _html_table(table: _Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=best' if best else ''}>{html.escape(text)}</td>" for text, best in row)
        + "</tr>"
        for row in table.rows
    )
    return f"<h3>{html.escape(table.title)}</h3><div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _markdown_table(table: _Table) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rows = [line([f"**{text}**" if best else text for text, best in row]) for row in table.rows]
    rule = "|:--|" + "--:|" * (len(table.columns) - 1)
    return "\n".join([f"**{table.title}**", "", line(table.columns), rule, *rows])


def write(run: Run, out: str | Path, entry: dict[str, str] | None = None) -> Path:
    """Write report.html, report.md, the PNGs and leaderboard/ into ``out``; return the page's path.

    ``entry``: the leaderboard's Training, Outlier_Data, Arch and Additional_Description, where the folder's
    name does not say them.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    title = (
        " · ".join(filter(None, (run.identity.dataset, run.identity.network))) or run.folder.absolute().name
    )
    page, text = [], [f"# {title}"]

    def picture(name: str, figure: pictures.Figure, caption: str) -> str:
        data = pictures.png(figure)
        (out / f"{name}.png").write_bytes(data)
        encoded = base64.b64encode(data).decode()
        # Printed at 160 dpi for sharp screens and paper: shown at the figure's own size in CSS pixels.
        width = round(figure.get_figwidth() * 96)
        alt = html.escape(caption, quote=True)
        return (
            f'<figure><img width={width} alt="{alt}" src="data:image/png;base64,{encoded}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    # One colour per method on the whole page, AdaSCALE's first: OpenOOD has more methods than colours exist.
    labels = dict.fromkeys(method.label for methods in run.methods.values() for method in methods)
    colour = pictures.colours(sorted(labels, key=lambda label: not label.startswith("AdaSCALE")))
    for scheme, methods in run.methods.items():
        tables = _tables(methods)
        page.append(f"<h2>{_SCHEME_TITLES[scheme]}</h2>")
        page.append(picture(f"methods_{scheme}", _methods_figure(methods, colour), _METHODS_CAPTION))
        page += [_html_table(table) for table in tables]
        text += [f"## {_SCHEME_TITLES[scheme]}", *(_markdown_table(table) for table in tables)]
        first = {m.label: run.scores[scheme][m.label][0] for m in methods if m.label in run.scores[scheme]}
        first = {label: saved for label, saved in first.items() if saved.near or saved.far}
        several = (
            " (first of its runs)" if any(len(saved) > 1 for saved in run.scores[scheme].values()) else ""
        )
        if first:
            caption = f"Receiver operating characteristics{several}; legend: AUROC in percent, best first"
            page.append(
                "<h3>ROC curves</h3>" + picture(f"roc_{scheme}", pictures.rocs(first, colour), caption)
            )
            page.append("<h3>Score distributions</h3>")
        for label, saved in first.items():
            caption = (
                f"{label}: scores of in-distribution images (grey) and of each OOD set (coloured){several}"
            )
            image = picture(f"scores_{scheme}_{_slug(label)}", pictures.distributions(saved), caption)
            opened = " open" if label == next(iter(first)) else ""
            page.append(f"<details{opened}><summary>{html.escape(label)}</summary>{image}</details>")
    if run.searches:
        page.append("<h2>Hyperparameter search</h2>")
    for name, (auroc, swept) in run.searches.items():
        page.append(
            picture(f"search_{_slug(name)}", pictures.search_map(auroc), _search_caption(name, auroc, swept))
        )
    run.notes += _write_leaderboard(run, out / "leaderboard", entry or {})
    if run.notes:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in run.notes)
        page.append(f"<h2>Notes</h2><ul>{notes}</ul>")
        text += ["## Notes", "\n".join(f"- {note}" for note in run.notes)]
    (out / "report.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    safe_title = html.escape(title)
    body = f"<h1>{safe_title}</h1><p class=sub>{html.escape(run.folder.name)}</p>" + "\n".join(page)
    (out / "report.html").write_text(
        _PAGE.format(title=safe_title, style=_STYLE, body=body), encoding="utf-8"
    )
    return out / "report.html"


def _methods_figure(methods: list[Method], colour: dict[str, str]) -> pictures.Figure:
    columns = pd.MultiIndex.from_product([("near", "far"), ("FPR@95", "AUROC")])
    labels = [method.label for method in methods]
    values = [[method.value(f"{side}ood", metric) for side, metric in columns] for method in methods]
    frames = [
        pd.DataFrame([[cell[part] for cell in row] for row in values], index=labels, columns=columns)
        for part in (0, 1)
    ]
    return pictures.methods(frames[0], frames[1], colour)


def _search_caption(name: str, auroc: pd.DataFrame, swept: list[str]) -> str:
    stacked = auroc.stack().dropna()
    fixed = stacked[[p_min == p_max for p_min, p_max in stacked.index]]
    best: Any = stacked.idxmax()
    caption = (
        f"{NAMES.get(name, name)}: AUROC on validation images, best {stacked.max():.2f} "
        f"at p_min {best[0]:g}, p_max {best[1]:g}"
    )
    if len(fixed):
        best = fixed.idxmax()
        caption += (
            f"; best fixed percentile (dotted: SCALE for variant A, LTS for variant L) {fixed.max():.2f} "
            f"at {best[0]:g}"
        )
    return caption + (f"; each cell the best over {', '.join(swept)}" if swept else "")


def _write_leaderboard(run: Run, out: Path, entry: dict[str, str]) -> list[str]:
    """Entries as CSV and JSON per benchmark, and copies of the result CSVs; returns notes on what lacks."""
    notes = []
    identity = run.identity
    epochs = re.search(r"_e(\d+)_", identity.run)
    description = "torchvision ckpt" if "tvsv" in identity.run else f"{epochs[1]} epochs" if epochs else ""
    training = "ISH" if identity.network == "resnet50-ISH" else identity.training or "CrossEntropy"
    for scheme, methods in run.methods.items():
        entries = []
        for method in methods:
            near, far = method.value("nearood", "AUROC"), method.value("farood", "AUROC")
            if math.isnan(near[0]) or math.isnan(far[0]):
                notes.append(f"{method.label} ({scheme}): no leaderboard entry, which needs near and far OOD")
                continue
            accuracy = method.value("nearood", "ACC")
            values = {
                "Training": training,
                "Postprocessor": method.label,
                "Near-OOD_AUROC": _number(*near),
                "Far-OOD_AUROC": _number(*far),
                "ID_Accuracy": "/" if math.isnan(accuracy[0]) else _number(*accuracy),
                "Outlier_Data": "No",
                "Arch": _ARCHS.get(identity.network or "", identity.network or ""),
                "Additional_Description": description,
            }
            entries.append({**values, **entry})
            if method.source:
                (out / scheme).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(method.source, out / scheme / f"{_slug(method.label)}.csv")
        if entries:
            out.mkdir(parents=True, exist_ok=True)
            name = (identity.dataset or "results").replace("imagenet", "imagenet1k").replace("1k200", "200")
            name += "" if name.startswith("cifar") and scheme == "ood" else f"_{scheme}"
            pd.DataFrame(entries, columns=list(LEADERBOARD_FIELDS)).to_csv(out / f"{name}.csv", index=False)
            (out / f"{name}.json").write_text(
                json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
    return notes


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``openood-adascale report``."""
    parser.description = (
        "Make one page, pictures, Markdown tables and leaderboard entries from a run's folder."
    )
    parser.add_argument(
        "folder", type=Path, help="a run's folder, e.g. results/imagenet_resnet50_tvsv1_base_default"
    )
    parser.add_argument("-o", "--out", type=Path, help="folder to write to (default: FOLDER/report)")
    parser.add_argument("--training", help="leaderboard: training method (default: from the folder's name)")
    parser.add_argument(
        "--outlier-data", choices=("No", "Yes"), help="leaderboard: outliers in training (default: No)"
    )
    parser.add_argument("--arch", help="leaderboard: network (default: from the folder's name)")
    parser.add_argument(
        "--description", help="leaderboard: e.g. '100 epochs' (default: from the folder's name)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the report; 0 if written, 2 if the folder cannot be used."""
    options = (args.training, args.outlier_data, args.arch, args.description)
    fields = ("Training", "Outlier_Data", "Arch", "Additional_Description")
    entry = {name: value for name, value in zip(fields, options, strict=True) if value is not None}
    try:
        page = write(collect(args.folder), args.out or args.folder / "report", entry)
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


_METHODS_CAPTION = "All methods, best near-OOD AUROC first; ↓ lower is better, ↑ higher is better, bold: best"
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff}
body{max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0} .sub{color:#666;margin:0 0 1.5rem}
h2{font-size:1.25rem;margin:2.5rem 0 .5rem;border-bottom:1px solid #ddd;padding-bottom:.3rem}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
.wide{overflow-x:auto} table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.28rem .8rem;text-align:right;white-space:nowrap;border-bottom:1px solid #eee}
th{font-weight:600;color:#555;border-bottom:1px solid #999}
th:first-child,td:first-child{text-align:left;padding-left:0}
.best{font-weight:700} figure{margin:1rem 0} img{max-width:100%;height:auto;display:block}
figcaption{color:#666;font-size:.85rem;margin-top:.2rem}
summary{cursor:pointer;font-weight:600;padding:.3rem 0}
"""
# The policy keeps the page from loading anything: all it shows is inside it.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head><body>{body}</body></html>
"""

"""A run on one page; its pictures, Markdown tables and leaderboard entries beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from . import leaderboard, markdown, page, pictures, sheets
from .files import OutputFolder
from .names import is_adascale, label_of
from .runs import Evaluated, Run, averages
from .text import shown

_SCHEME_TITLES = {"ood": "OOD detection", "fsood": "Full-spectrum OOD detection"}
_METHODS_CAPTION = "All methods, best near-OOD AUROC first; ↓ lower is better, ↑ higher is better, bold: best"


def write(run: Run, out: str | Path, entry: Mapping[str, str] | None = None) -> Path:
    """Write report.html, report.md, the PNGs and leaderboard/ into ``out``; return the page's path.

    ``entry``: the leaderboard's Training, Outlier_Data, Arch and Additional_Description, where the folder's
    name does not say them.
    """
    files = OutputFolder(Path(out))
    subtitle = shown(run.title)
    title = " · ".join(filter(None, (run.identity.dataset, run.identity.network))) or subtitle
    draft = _Draft(files, title)
    # One colour per method on the whole page, AdaSCALE's first: OpenOOD has more methods than colours exist.
    labels = dict.fromkeys(method.label for methods in run.methods.values() for method in methods)
    colour = pictures.colours(sorted(labels, key=lambda label: not label.startswith("AdaSCALE")))
    for scheme, methods in run.methods.items():
        draft.methods(scheme, methods, colour)
    draft.searches(run)
    draft.notes([*run.notes, *leaderboard.write(run, files.inside("leaderboard"), entry or {})])
    files.put("report.md", markdown.document(draft.text))
    return files.put("report.html", page.document(title, subtitle, draft.page))


class _Draft:
    """A report in the making: blocks of HTML, blocks of Markdown, and the pictures that are written already."""

    def __init__(self, files: OutputFolder, title: str) -> None:
        self._files = files
        self.page: list[str] = []
        self.text = [f"# {markdown.escaped(title)}"]

    def _picture(self, kind: str, name: str, figure: pictures.Figure, caption: str) -> str:
        png = pictures.png(figure)
        self._files.put(self._files.unique(kind, name, ".png"), png)
        # Printed at 160 dpi for sharp screens and paper: shown at the figure's own size in CSS pixels.
        return page.picture(png, round(figure.get_figwidth() * 96), caption)

    def methods(self, scheme: str, methods: list[Evaluated], colour: Mapping[str, str]) -> None:
        """A picture and tables of a scheme's methods, and pictures of their scores."""
        tables = sheets.of_methods(methods)
        self.page.append(f"<h2>{_SCHEME_TITLES[scheme]}</h2>")
        overview = pictures.methods(*averages(methods), colour)
        self.page.append(self._picture("methods_", scheme, overview, _METHODS_CAPTION))
        self.page += map(page.table, tables)
        self.text += [f"## {_SCHEME_TITLES[scheme]}", *map(markdown.table, tables)]
        first = {method.label: method.scores[0] for method in methods if method.scores}
        first = {label: saved for label, saved in first.items() if saved.near or saved.far}
        if not first:
            return
        several = " (first of its runs)" if any(len(method.scores) > 1 for method in methods) else ""
        caption = f"Receiver operating characteristics{several}; legend: AUROC in percent, best first"
        rocs = self._picture("roc_", scheme, pictures.rocs(first, colour), caption)
        self.page += ["<h3>ROC curves</h3>" + rocs, "<h3>Score distributions</h3>"]
        for label, saved in first.items():
            caption = (
                f"{label}: scores of in-distribution images (grey) and of each OOD set (coloured){several}"
            )
            image = self._picture(f"scores_{scheme}_", label, pictures.distributions(saved), caption)
            self.page.append(page.foldable(label, image, label == next(iter(first))))

    def searches(self, run: Run) -> None:
        """Heat maps of the searches over percentiles, tables of the others."""
        if not run.searches:
            return
        self.page.append("<h2>Hyperparameter search</h2>")
        tables = []
        for name, search in run.searches.items():
            auroc = search.percentile_map()
            if auroc is None:
                tables.append(sheets.of_candidates(name, search))
                continue
            swept = [setting for setting in search.searched() if setting not in ("p_min", "p_max")]
            caption = _search_caption(name, auroc, swept)
            self.page.append(self._picture("search_", name, pictures.search_map(auroc), caption))
        self.page += map(page.table, tables)
        if tables:
            self.text += ["## Hyperparameter search", *map(markdown.table, tables)]

    def notes(self, notes: list[str]) -> None:
        """What has to be known beside the figures."""
        if notes:
            texts = [shown(note) for note in dict.fromkeys(notes)]
            self.page.append(f"<h2>Notes</h2>{page.points(texts)}")
            self.text += ["## Notes", markdown.points(texts)]


def _search_caption(name: str, auroc: pd.DataFrame, swept: list[str]) -> str:
    tried = {
        (p_min, p_max): value
        for p_min, row in auroc.iterrows()
        for p_max, value in row.items()
        if not pd.isna(value)
    }
    p_min, p_max = max(tried, key=tried.__getitem__)
    caption = (
        f"{label_of(name)}: AUROC on validation images, best {tried[p_min, p_max]:.2f} "
        f"at p_min {p_min:g}, p_max {p_max:g}"
    )
    fixed = {pair[0]: value for pair, value in tried.items() if pair[0] == pair[1]}
    if fixed and is_adascale(name):
        best = max(fixed, key=fixed.__getitem__)
        caption += (
            f"; best fixed percentile (dotted: SCALE for variant A, LTS for variant L) {fixed[best]:.2f} "
            f"at {best:g}"
        )
    return caption + (f"; each cell the best over {', '.join(map(shown, swept))}" if swept else "")

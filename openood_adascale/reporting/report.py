"""A run on one page; its pictures, Markdown tables and leaderboard entries beside it."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ..errors import ResultError
from . import leaderboard, markdown, page, pictures, sheets
from .files import OutputFolder
from .gallery import MOST, Gallery, gallery, pair_of
from .names import is_adascale, label_of
from .rivals import Rivals, rivals, whose
from .runs import Evaluated, Run, averages, ranked
from .text import shown

_SCHEME_TITLES = {"ood": "OOD detection", "fsood": "Full-spectrum OOD detection"}
_METHODS_CAPTION = "All methods, best near-OOD AUROC first; ↓ lower is better, ↑ higher is better, bold: best"

_PUBLISHED_CAPTION = "; hollow: published, not run here"
_IMAGES_HINT = (
    "As: the predicted class. Score: larger is more in-distribution. Rank: the share of the known test images that score "
    "lower. Kept are images that score at or above the threshold, which keeps 95 % of the known ones; an orange frame marks "
    "those on its wrong side. p: AdaSCALE's adaptive percentile of the image, smaller where its strongest activations "
    "moved more."
)
_PAIR_HINT = (
    "The images of each set whose ranks differ most. A rank is the share of the known test images that score lower under "
    "the same method, so that ranks of two methods can be compared and their scores need not be."
)
_AGREEMENT_HINT = "known images grey, OOD images coloured; below 5 % (shaded) a method refuses an image"


def write(
    run: Run,
    out: str | Path,
    entry: Mapping[str, str] | None = None,
    *,
    pair: Sequence[str] | None = None,
    images: int = MOST,
    published: str | None = None,
) -> Path:
    """Write report.html, report.md, the PNGs and leaderboard/ into ``out``; return the page's path.

    Args:
        run: from a folder or from results in memory, see :mod:`~.gather`.
        out: folder; it is made.
        entry: the leaderboard's Training, Outlier_Data, Arch and Additional_Description, where the folder's name does
            not say them.
        pair: the two methods whose disagreement is shown, by name or label; None takes AdaSCALE-A and the best other.
        images: how many images of a kind are shown at most, from 0 on.
        published: ``DATASET:NETWORK``, whose published figures stand beside the run's; ``none``; or None for what the
            run's folder says.

    Raises:
        ResultError: a pair that is none of the run's, fewer images than 0, or nothing published for what was chosen.
    """
    two, of = pair_of(run, pair), whose(run.identity, published)
    if isinstance(images, bool) or not isinstance(images, int) or images < 0:
        raise ResultError(f"images: {images!r}; expected a whole number from 0 on")
    files = OutputFolder(Path(out))
    subtitle = shown(run.title)
    title = " · ".join(filter(None, (run.identity.dataset, run.identity.network))) or subtitle
    draft = _Draft(files, title)
    # One colour per method on the whole page, AdaSCALE's first: OpenOOD has more methods than colours exist.
    labels = dict.fromkeys(method.label for methods in run.methods.values() for method in methods)
    colour = pictures.colours(sorted(labels, key=lambda label: not label.startswith("AdaSCALE")))
    notes = [*run.notes]
    for scheme, methods in run.methods.items():
        found = rivals(methods, of, scheme)
        draft.methods(scheme, methods, found, colour)
        notes += found.notes
        if images:
            draft.images(scheme, gallery(methods, two, images), colour)
    draft.searches(run)
    draft.notes([*notes, *leaderboard.write(run, files.inside("leaderboard"), entry or {})])
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

    def methods(
        self, scheme: str, methods: list[Evaluated], found: Rivals, colour: Mapping[str, str]
    ) -> None:
        """A picture and tables of a scheme's methods among their published rivals, and pictures of their scores."""
        among = ranked([*methods, *found.beside])
        tables = [*sheets.of_methods(among), *([found.sheet] if found.sheet else [])]
        self.page.append(f"<h2>{_SCHEME_TITLES[scheme]}</h2>")
        # A picture of averages has no place for a method of which there is none.
        drawn = [method for method in among if not method.published or _has_average(method)]
        published = [method.label for method in drawn if method.published]
        overview = pictures.methods(*averages(drawn), colour, published)
        caption = _METHODS_CAPTION + (_PUBLISHED_CAPTION if published else "")
        self.page.append(self._picture("methods_", scheme, overview, caption))
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

    def images(self, scheme: str, found: Gallery, colour: Mapping[str, str]) -> None:
        """The images that fooled methods, and those on which two disagree."""
        self.page.append("<h2>Images</h2>")
        self.text.append("## Images")
        if found.methods:
            self.page.append(page.paragraph(_IMAGES_HINT))
            self.text.append("They are in report.html.")
        if found.pair and found.disagreement:
            one, other = found.pair
            self.page.append(f"<h3>{html.escape(f'{one} against {other}')}</h3>")
            self.page.append(page.paragraph(_PAIR_HINT))
            if len(found.ranks) > 1:
                caption = f"Each image by its rank under {one} and {other}; {_AGREEMENT_HINT}"
                drawn = pictures.agreement(found.ranks, found.pair, colour[one])
                self.page.append(self._picture("pair_", scheme, drawn, caption))
            for place, panel in enumerate(found.disagreement):
                self.page.append(page.foldable(panel.title, "".join(map(page.row, panel.rows)), place == 0))
        if found.methods:
            self.page.append("<h3>What fooled each method</h3>")
            for place, panel in enumerate(found.methods):
                self.page.append(page.foldable(panel.title, "".join(map(page.row, panel.rows)), place == 0))
        if found.lines:
            self.page.append(page.points(found.lines))
            self.text.append(markdown.points(found.lines))

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


def _has_average(method: Evaluated) -> bool:
    return any(not math.isnan(method.value(f"{side}ood", "AUROC")[0]) for side in ("near", "far"))


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

"""A run: what every method of it reached."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..metrics import fpr95_auroc
from .identify import Identity
from .scores import Scores
from .searches import Search
from .tables import ResultTable


@dataclass(frozen=True)
class Evaluated:
    """A method's figures, and the scores behind them where those were saved, one per training run."""

    label: str
    table: ResultTable
    scores: tuple[Scores, ...] = ()
    published: bool = False
    """Whether the figures are published ones of a method that was not run."""

    @classmethod
    def from_scores(cls, label: str, scores: Sequence[Scores]) -> Evaluated:
        """With figures computed from the scores: mean and, of several runs, standard deviation."""
        near, far = tuple(scores[0].near), tuple(scores[0].far)
        frames = [_figures(saved, near, far) for saved in scores]
        mean, std = mean_and_std(frames)
        return cls(
            label, ResultTable(near, far, mean, std if len(frames) > 1 else unknown(mean)), tuple(scores)
        )

    def value(self, row: str, metric: str) -> tuple[float, float]:
        """Mean and standard deviation, percent."""
        return self.table.value(row, metric)


@dataclass
class Run:
    """Everything that a report shows of a folder, or of results in memory."""

    title: str
    identity: Identity
    methods: dict[str, list[Evaluated]] = field(default_factory=dict)
    """By scheme (``ood``, ``fsood``), best near AUROC first."""
    searches: dict[str, Search] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def ranked(methods: Iterable[Evaluated]) -> list[Evaluated]:
    """Best near AUROC first, unknown ones last; among equals, as where there are only far sets, the best far AUROC."""

    def key(method: Evaluated) -> tuple[float, ...]:
        aurocs = (method.value(row, "AUROC")[0] for row in ("nearood", "farood"))
        return tuple(1.0 if math.isnan(auroc) else -auroc for auroc in aurocs)

    return sorted(methods, key=key)


def averages(methods: Sequence[Evaluated]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means and standard deviations of the averages, percent: rows are methods, columns (side, metric)."""
    columns = pd.MultiIndex.from_product([("near", "far"), ("FPR@95", "AUROC")])
    values = [[method.value(f"{side}ood", metric) for side, metric in columns] for method in methods]
    labels = [method.label for method in methods]
    mean, std = (
        pd.DataFrame([[cell[part] for cell in row] for row in values], index=labels, columns=columns)
        for part in (0, 1)
    )
    return mean, std


def mean_and_std(frames: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Over tables of the same rows and columns, as eval_ood.py computes them."""
    stacked, first = np.stack([frame.to_numpy() for frame in frames]), frames[0]
    mean, std = (
        pd.DataFrame(values, index=first.index, columns=first.columns)
        for values in (stacked.mean(0), stacked.std(0))
    )
    return mean, std


def unknown(like: pd.DataFrame) -> pd.DataFrame:
    """NaN, in another table's shape."""
    return pd.DataFrame(math.nan, index=like.index, columns=like.columns)


def _figures(scores: Scores, near: tuple[str, ...], far: tuple[str, ...]) -> pd.DataFrame:
    """FPR@95, AUROC and accuracy in percent, NaN for a set that was not scored."""
    rows = [*near, *(["nearood"] if near else []), *far, *(["farood"] if far else [])]
    frame = pd.DataFrame(math.nan, index=rows, columns=["FPR@95", "AUROC", "ACC"])
    for names, side, average in ((near, scores.near, "nearood"), (far, scores.far, "farood")):
        for name in set(names) & set(side):
            frame.loc[name, ["FPR@95", "AUROC"]] = fpr95_auroc(scores.id, side[name])
        if names:
            frame.loc[average] = frame.loc[list(names)].mean(skipna=False)
    frame["ACC"] = math.nan if scores.accuracy is None else scores.accuracy
    return frame

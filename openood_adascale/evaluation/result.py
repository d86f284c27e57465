"""The result of an evaluation for one method."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..metrics import COLUMNS, ood_metrics
from .benchmark import Benchmark
from .per_image import PerImage, classes_of, folder_classes, joined

Parts = dict[str, list[tuple[np.ndarray, PerImage]]]
"""(N,) float64 scores of one method and their images, of each loader of a set, by set."""


@dataclass
class Result:
    """Result of :func:`~openood_adascale.evaluate` for one method.

    >>> result = evaluate(MSP(network), benchmark)
    >>> list(result.table.columns)
    ['FPR@95', 'AUROC', 'AUPR_IN', 'AUPR_OUT', 'ACC']
    >>> {name: len(scores) for name, scores in result.scores.items()}
    {'id': 30, 'wolves': 20, 'textures': 20}
    """

    table: pd.DataFrame
    """Rows are the near sets, ``nearood`` (their mean), the far sets and ``farood``, as far as there are such sets;
    columns are :data:`~openood_adascale.metrics.COLUMNS` in percent, with ACC NaN if it was left out."""
    scores: dict[str, np.ndarray]
    """(N,) float64 scores of ``id`` (with the covariate-shifted sets in full-spectrum OOD detection) and of each OOD set."""
    search_results: pd.DataFrame | None = None
    """The candidates of a search and their AUROC in percent (None without a search)."""
    near: tuple[str, ...] = ()
    """Names of the near-OOD sets."""
    far: tuple[str, ...] = ()
    """Names of the far-OOD sets."""
    scheme: str = "ood"
    """``ood``, or ``fsood`` for full-spectrum OOD detection, as OpenOOD calls them."""
    images: dict[str, PerImage] = field(default_factory=dict)
    """Files, labels and predicted classes by the names of :attr:`scores`, and in their order."""
    classes: tuple[str, ...] = ()
    """Names of the classes 0, 1, … (empty if they are unknown)."""


def result_of(
    benchmark: Benchmark,
    parts: Parts,
    class_count: int,
    search: pd.DataFrame | None,
    accuracy: float,
    full_spectrum: bool,
) -> Result:
    """Return the result of one method; C, ``class_count``, is 0 if unknown."""
    scores = {name: np.concatenate([values for values, _ in found]) for name, found in parts.items()}
    rows: dict[str, dict[str, float]] = {}
    for split, sets in (("nearood", benchmark.near), ("farood", benchmark.far)):
        for name in sets:
            try:
                rows[name] = ood_metrics(scores["id"], scores[name])
            except ValueError as error:
                text = str(error).replace("ood_scores", f"{name}: scores").replace("id_scores", "id: scores")
                raise ValueError(text) from error
        if sets:
            means = {column: np.mean([rows[name][column] for name in sets]) for column in COLUMNS[:-1]}
            rows[split] = {column: float(mean) for column, mean in means.items()}
    return Result(
        pd.DataFrame.from_dict(rows, orient="index").assign(ACC=accuracy)[list(COLUMNS)],
        scores,
        search,
        tuple(benchmark.near),
        tuple(benchmark.far),
        "fsood" if full_spectrum else "ood",
        {name: joined([images for _, images in found]) for name, found in parts.items()},
        _class_names(benchmark, class_count),
    )


def _class_names(benchmark: Benchmark, count: int) -> tuple[str, ...]:
    if not benchmark.classes:
        # The dataset's names are the network's only if there are as many.
        dataset = getattr(benchmark.test, "dataset", None)
        names = folder_classes(dataset) or classes_of(dataset)
        return names if len(names) == count else ()
    if count in (0, len(benchmark.classes)):
        return tuple(benchmark.classes)
    told = f"{len(benchmark.classes)} names are left out; the network has {count} classes"
    warnings.warn(f"benchmark.classes: {told}", UserWarning, stacklevel=2)
    return ()

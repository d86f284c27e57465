"""What an evaluation found of one method."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..metrics import COLUMNS, ood_metrics
from .benchmark import Benchmark
from .one_pass import Seen, TestScores
from .per_image import PerImage
from .which_files import classes_of


@dataclass
class Result:
    """What :func:`~.evaluate.evaluate` found of one method.

    >>> result = evaluate(MSP(network), benchmark)
    >>> list(result.table.columns)
    ['FPR@95', 'AUROC', 'AUPR_IN', 'AUPR_OUT', 'ACC']
    >>> {name: len(scores) for name, scores in result.scores.items()}
    {'id': 30, 'wolves': 20, 'textures': 20}
    """

    table: pd.DataFrame
    """Rows: the near sets, ``nearood`` (their mean), the far sets, ``farood``, each where there are such sets;
    columns :data:`~openood_adascale.metrics.COLUMNS`, in percent."""
    scores: dict[str, np.ndarray]
    """Of ``id`` (with the covariate-shifted sets under full-spectrum OOD) and of every OOD set by name."""
    search: pd.DataFrame | None = None
    """The candidates and their AUROC in percent, where there was a search."""
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    """The names of the OOD sets."""
    scheme: str = "ood"
    """``ood``, or ``fsood`` under full-spectrum OOD, as OpenOOD calls them."""
    images: dict[str, PerImage] = field(default_factory=dict)
    """By the same names as :attr:`scores` and in their order: files, labels, predicted classes, adaptive percentiles."""
    classes: tuple[str, ...] = ()
    """Names of the classes 0, 1, …, where they are known."""


def result_of(
    benchmark: Benchmark,
    tested: TestScores,
    seen: Seen,
    search: pd.DataFrame | None,
    known_accuracy: float,
    full_spectrum: bool,
) -> Result:
    """One method's scores of all test images as a :class:`Result`.

    Args:
        tested: its scores.
        seen: what else the pass showed of the images.
        search: the candidates' table, if it was searched.
        known_accuracy: in percent.
        full_spectrum: whether the covariate-shifted sets count as in-distribution.
    """
    scores = tested.scores()
    rows: dict[str, dict[str, float]] = {}
    for split, sets in (("nearood", benchmark.near), ("farood", benchmark.far)):
        if not sets:
            continue
        for name in sets:
            rows[name] = ood_metrics(scores["id"], scores[name])
        rows[split] = {
            column: float(np.mean([rows[name][column] for name in sets])) for column in COLUMNS[:-1]
        }
    table = pd.DataFrame.from_dict(rows, orient="index").assign(ACC=known_accuracy)[list(COLUMNS)]
    scheme = "fsood" if full_spectrum else "ood"
    return Result(
        table,
        scores,
        search,
        tuple(benchmark.near),
        tuple(benchmark.far),
        scheme,
        seen.images(tested.percentiles()),
        _class_names(benchmark, seen.classes),
    )


def _class_names(benchmark: Benchmark, count: int) -> tuple[str, ...]:
    """Of ``count`` classes of the network, 0 where that is not known."""
    if benchmark.classes:
        if count not in (0, len(benchmark.classes)):
            warnings.warn(
                f"benchmark.classes: {len(benchmark.classes)} names are left out; the network has {count} classes",
                UserWarning,
                stacklevel=2,
            )
            return ()
        return tuple(benchmark.classes)
    # Those of the test images' folders are the network's only if there are as many.
    names = classes_of(getattr(benchmark.test, "dataset", None))
    return names if len(names) == count else ()

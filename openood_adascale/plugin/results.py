"""Evaluations of OpenOOD's ``Evaluator`` as a :class:`~openood_adascale.report.run.Run`, for ``openood-adascale run``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from torch.utils import data

from ..detectors.settings import Settings
from ..evaluation.per_image import PerImage, as_classes, files_of, joined
from ..evaluation.result import Result
from ..report.names import SCHEMES, identify
from ..report.run import KINDS, Run, read_run, run_file, write_run
from ..report.tables import mean_and_std


class Evaluation(NamedTuple):
    """One evaluation by OpenOOD's ``Evaluator``."""

    name: str
    """Of the postprocessor."""
    id: str
    """Name of the ID dataset."""
    settings: dict[str, Any]
    """Of the postprocessor, if it is one of this package."""
    result: Result


_ORDERS: WeakKeyDictionary[Any, np.ndarray] = WeakKeyDictionary()
"""Dataset indices in the order in which shuffled loaders yielded the images that were scored."""


class RecordingSampler(data.Sampler[int]):
    """A sampler that keeps the order of each iteration."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.orders: list[list[int]] = []

    def __iter__(self) -> Iterator[int]:
        self.orders.append(list(self.sampler))
        return iter(self.orders[-1])

    def __len__(self) -> int:
        return len(self.sampler)


def test_loaders(evaluator: Any, full_spectrum: bool) -> Iterator[tuple[str, Any, Any]]:
    """Yield set, loader and OpenOOD's saved ``[predictions, scores, labels]`` (None before scoring) of the test images."""
    loaders, saved = evaluator.dataloader_dict, evaluator.scores
    yield "id", loaders["id"]["test"], saved["id"]["test"]
    for name in saved["csid"] if full_spectrum else ():
        yield "id", loaders["csid"][name], saved["csid"][name]
    for side in ("near", "far"):
        for name, loader in loaders["ood"][side].items():
            yield name, loader, saved["ood"][side][name]


@contextmanager
def recorded_orders(evaluator: Any, full_spectrum: bool) -> Iterator[None]:
    """Record the order in which shuffled loaders, as in ``eval_ood_imagenet.py``, first yield their images."""
    recorded = []
    for _, loader, saved in test_loaders(evaluator, full_spectrum):
        batches: Any = getattr(loader, "batch_sampler", None)
        if saved is None and isinstance(getattr(batches, "sampler", None), data.RandomSampler):
            batches.sampler = RecordingSampler(batches.sampler)
            recorded.append((loader, batches))
    try:
        yield
    finally:
        for loader, batches in recorded:
            if orders := batches.sampler.orders:
                _ORDERS[loader] = np.array(orders[0])  # the accuracy may iterate once more
            batches.sampler = batches.sampler.sampler


def evaluated(evaluator: Any, name: str, table: pd.DataFrame, full_spectrum: bool) -> Evaluation:
    """Return the ``Evaluator``'s result; images of a shuffled loader come in the order of its dataset.

    Args:
        evaluator: The ``Evaluator`` after ``eval_ood``.
        name: Name of its postprocessor.
        table: Table that ``eval_ood`` returned.
        full_spectrum: True if the covariate-shifted sets count as ID.
    """
    details_of: Callable[[Any], dict[str, np.ndarray]]
    details_of = getattr(evaluator.postprocessor, "details_of", lambda loader: {})
    scores: dict[str, list[np.ndarray]] = {}
    images: dict[str, list[PerImage]] = {}
    for key, loader, saved in test_loaders(evaluator, full_spectrum):
        order, count = _ORDERS.get(loader), len(saved[1])
        columns = {"predictions": as_classes(saved[0], count), "labels": as_classes(saved[2], count)}
        found = {"scores": np.asarray(saved[1], np.float64), **columns, **details_of(loader)}
        if order is not None and len(order) == count:
            place = np.argsort(order)
            found = {kind: values[place] for kind, values in found.items()}
            loader = data.DataLoader(loader.dataset, loader.batch_size, collate_fn=loader.collate_fn)
        scores.setdefault(key, []).append(found.pop("scores"))
        paths = [os.path.abspath(path) for path in files_of(loader)]
        images.setdefault(key, []).append(PerImage(**found, paths=paths if len(paths) == count else ()))
    near, far = (tuple(evaluator.dataloader_dict["ood"][side]) for side in ("near", "far"))
    result = Result(
        table,
        {key: np.concatenate(parts) for key, parts in scores.items()},
        near=near,
        far=far,
        scheme="fsood" if full_spectrum else "ood",
        images={key: joined(parts) for key, parts in images.items()},
    )
    settings = getattr(evaluator.postprocessor, "settings", None)
    known = settings.as_dict() if isinstance(settings, Settings) else {}
    return Evaluation(name, evaluator.id_name, known, result)


def save_runs(
    evaluations: Mapping[str, Sequence[Evaluation]], folder: Path, save_tables: bool = True
) -> list[Path]:
    """Write OpenOOD's evaluations as one run per scheme, and return the paths of ``run.json`` and ``run_fsood.json``.

    A method's table is the mean over its training runs; the images are those of the first. Methods of an earlier run on
    the same images stay in the folder's run.

    Args:
        evaluations: By postprocessor, one per training run.
        folder: The run's folder; OpenOOD's names say network and training (``cifar10_resnet18_32x32_base_e100_…``).
        save_tables: False keeps the tables that OpenOOD's script has written there.

    Raises:
        ResultError: The postprocessors were evaluated on different sets or images, or an earlier run cannot be read.
        OSError: A file cannot be written.
    """
    identity = identify(folder / "ood" / "unnamed.csv")
    paths = []
    for scheme in SCHEMES:
        found = {
            name: own
            for name, all_own in evaluations.items()
            if (own := [one for one in all_own if one.result.scheme == scheme])
        }
        if not found:
            continue
        first = {name: own[0] for name, own in found.items()}
        run = Run.from_results(
            {name: one.result for name, one in first.items()},
            settings={name: one.settings for name, one in first.items()},
            id=next(iter(first.values())).id,
            network=identity.network,
            title=identity.run,
        )
        run.settings = {"training": identity.training} if identity.training else {}
        for method in run.methods:
            if len(tables := [one.result.table for one in found[method.name]]) > 1:
                method.table, method.std = mean_and_std(tables)
        if run_file(folder, scheme).exists():
            run = _with_earlier(read_run(folder, scheme), run)
        paths.append(write_run(run, folder, save_tables))
    return paths


def _with_earlier(earlier: Run, run: Run) -> Run:
    """Return a run with the earlier run's other methods too, if it was on the same images."""
    names = [method.name for method in run.methods]
    others = [method for method in earlier.methods if method.name not in names]
    known, own = (one.images[["set", "path", "label"]].to_numpy(object) for one in (earlier, run))
    if (earlier.near, earlier.far) != (run.near, run.far) or not np.array_equal(known, own):
        return run
    columns = [f"{kind}_{method.name}" for method in others for kind in KINDS]
    kept = [column for column in columns if column in earlier.images]
    return replace(run, methods=[*others, *run.methods], images=run.images.join(earlier.images[kept]))

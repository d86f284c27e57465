"""Runs from OpenOOD's own result folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ResultError
from ..io import printable
from ..metrics import fpr95_auroc
from .names import AVERAGES, SCHEMES, file_names, identify, is_name, label_of, method_of, shortened
from .run import LARGEST, MethodResult, Run, image_table, read_run, run_file
from .tables import ResultTable, find_tables, mean_and_std, read_table, table_of
from .unpickling import NumbersUnpickler


def load(folder: str | Path) -> list[Run]:
    """Read a folder of this package's (``run.json``), or of OpenOOD's, as one run per scheme.

    Args:
        folder: The folder.

    Raises:
        ResultError: If there is nothing to read, or several runs, or the result format of an earlier version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ResultError(f"{folder}: no such folder; expected the folder of a run")
    schemes = [scheme for scheme in SCHEMES if run_file(folder, scheme).exists()]
    runs = [read_run(folder, scheme) for scheme in schemes] or read_openood(folder)
    for run, scheme in zip(runs, schemes, strict=False):
        listed = file_names(one.name for one in run.methods)
        if others := sorted(path.name for path in (folder / scheme).glob("*.csv") if path.stem not in listed):
            names = shortened(", ".join(others), 200)
            run.notes.append(f"Left out, not part of the run in {run_file('', scheme)}: {names}.")
    for run in runs:
        run.title = run.title or Path(os.path.abspath(folder)).name
    return runs


class Saved(NamedTuple):
    """Scores in a pickle of ``eval_ood.py --save-score``."""

    id: np.ndarray
    near: dict[str, np.ndarray]
    far: dict[str, np.ndarray]
    accuracy: float
    """In percent, NaN if unknown."""
    labels: np.ndarray | None
    """Labels of the ID images, which show their order."""

    def table(self) -> ResultTable:
        """Return FPR@95, AUROC and accuracy in percent."""
        rows = {
            name: dict(zip(("FPR@95", "AUROC"), fpr95_auroc(self.id, values), strict=True))
            for name, values in {**self.near, **self.far}.items()
        }
        table = table_of(rows, list(self.near), list(self.far)).assign(ACC=self.accuracy)
        return ResultTable(tuple(self.near), tuple(self.far), table)


def read_openood(folder: str | Path) -> list[Run]:
    """Read the result CSVs and saved scores below a folder of OpenOOD's as one run per scheme.

    Files that are malformed or unsafe to read are left out; the runs' notes name them. Of several training runs the
    scores of the first are used.

    Raises:
        ResultError: If nothing is left, or if the folder holds runs of several datasets or networks.
    """
    folder = Path(folder)
    if old := next((name for name in ("images.parquet", "images.csv") if (folder / name).exists()), None):
        raise ResultError(
            f"{folder}: {old} without run.json, from an interrupted run or an earlier version; expected run.json: "
            "evaluate again"
        )
    paths, left_out = find_tables(folder)
    found = set()
    tables: dict[str, dict[str, list[tuple[Path, ResultTable]]]] = {scheme: {} for scheme in SCHEMES}
    scores: dict[str, dict[str, Saved]] = {scheme: {} for scheme in SCHEMES}
    for path in [*paths, *sorted(folder.rglob("scores/*.pkl"))]:
        identity = identify(path)
        name = printable(identity.stem)
        try:
            if path.suffix == ".csv":
                table = read_table(path)
                tables[identity.scheme or "ood"].setdefault(name, []).append((path, table))
            elif path.is_file():
                for scheme, saved in read_scores(path).items():
                    scores[scheme].setdefault(name, saved)
            if identity.run and identity.dataset:
                found.add((identity.dataset, identity.network, identity.training))
        except (ResultError, OSError) as error:
            left_out.append(str(error))
    if len(found) > 1:
        several = "; ".join(sorted(" ".join(filter(None, one)) for one in found))
        raise ResultError(f"{folder}: several runs ({several}); expected the folder of one of them")
    dataset, network, training = next(iter(found), (None, None, None))
    settings = {"training": training} if training else {}
    runs = []
    for scheme in SCHEMES:
        if tables[scheme] or scores[scheme]:
            notes: list[str] = []
            merged = {name: _merged(folder, name, some, notes) for name, some in tables[scheme].items()}
            about = {"scheme": scheme, "id": dataset, "network": network, "date": "", "settings": settings}
            runs.append(_run(merged, scores[scheme], notes, **about))
    if not runs:
        reasons = "".join(f"; left out: {reason}" for reason in left_out)
        raise ResultError(
            f"{folder}: no results; expected run.json, or result CSVs or scores of OpenOOD's (ood/*.csv, fsood/*.csv, "
            f"ood.csv, scores/*.pkl){reasons}"
        )
    runs[0].notes += [f"left out: {reason}" for reason in left_out]
    return runs


def _merged(folder: Path, name: str, found: list[tuple[Path, ResultTable]], notes: list[str]) -> ResultTable:
    """Return a method's table; the mean ± std of main.py's tables if there is one per seed."""
    places = [str(path.relative_to(folder)) for path, _ in found]
    first = found[0][1]
    notes += [f"{places[0]}: {note}" for note in first.notes]
    if len(found) > 1 and all(path.name == "ood.csv" for path, _ in found):
        try:
            mean, std = mean_and_std([table.mean for _, table in found])
        except ValueError:
            pass  # of other OOD sets
        else:
            notes.append(f"{label_of(name)}: mean ± standard deviation over {', '.join(places)}")
            return replace(first, mean=mean, std=std)
    if len(found) > 1:
        notes.append(f"{label_of(name)}: {places[0]} is used, not {shortened(', '.join(places[1:]), 200)}")
    return first


def _run(
    tables: Mapping[str, ResultTable], scores: Mapping[str, Saved], notes: list[str], **about: Any
) -> Run:
    """Return the run of all methods; a method's table is computed from its scores if there is no table."""
    methods: list[MethodResult] = []
    values: dict[str, dict[str, np.ndarray]] = {}
    counts: dict[str, int] = {}
    orders = [saved.labels for saved in scores.values() if saved.labels is not None]
    if not all(np.array_equal(order, orders[0]) for order in orders):
        notes.append(
            "The saved scores are of images in different orders, as eval_ood_imagenet.py's loaders shuffle: intervals of "
            "differences between methods are too wide."
        )
    for name, saved in scores.items():
        own = {"id": saved.id, **saved.near, **saved.far}
        if all(counts.setdefault(key, len(part)) == len(part) for key, part in own.items()):
            values[f"score_{name}"] = own
        else:
            notes.append(f"{label_of(name)}: scores left out; they are of other numbers of images")
    computed = {name: saved.table() for name, saved in scores.items()}
    found = {**tables, **computed, **tables}  # the tables' order first
    near = list(dict.fromkeys(one for table in found.values() for one in table.near))
    far = [one for table in found.values() for one in table.far if one not in near]
    for name, table in found.items():
        label, known = label_of(name), method_of(name)[0]
        label = f"{known} ({name})" if known and label == name else label  # a preset
        methods.append(MethodResult(name, table.mean, label, table.std))
        if {*table.near, *table.far} != {*near, *far}:
            notes.append(f"{label}: evaluated on other OOD sets; its averages are not comparable")
        if name in computed and table.std is None:
            difference = (table.mean - computed[name].mean)["AUROC"].abs().max()
            if difference > 0.05:
                notes.append(
                    f"{label}: AUROC in the table and of the saved scores differ by {difference:.2f} points"
                )
    images = image_table(values)
    images = images[images["set"].isin(["id", *near, *far])]  # scores can be of more sets than the tables
    return Run(methods, tuple(near), tuple(dict.fromkeys(far)), images=images, notes=notes, **about)


def read_scores(path: str | Path) -> dict[str, Saved]:
    """Read ``scores/POSTPROCESSOR.pkl`` of ``eval_ood.py`` without executing anything from it.

    Returns:
        Scores by scheme; ``fsood`` only if the covariate-shifted images were evaluated.

    Raises:
        ResultError: If the file is something else.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            saved: Any = NumbersUnpickler(file).load()
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise ResultError(f"{path}: not a score file that can be read safely: {error}") from error
    try:
        sides = [dict(saved["ood"][side]) for side in ("near", "far")]
        test, shifted = saved["id"]["test"], dict(saved["csid"])
        pairs = [(saved["id_preds"], saved["id_labels"])]
        pairs += [(saved["csid_preds"][name], saved["csid_labels"][name]) for name in shifted]
    except (TypeError, ValueError, LookupError) as error:
        raise ResultError(
            f"{path}: not the scores of OpenOOD's Evaluator ({error!r}); expected a dict with 'id', 'csid', 'ood', "
            "'id_preds', 'id_labels', 'csid_preds', 'csid_labels'"
        ) from error
    names = [name for side in sides for name in side]
    for name in (*names, *shifted):
        if not is_name(name) or name in (*AVERAGES, "id") or names.count(name) > 1:
            raise ResultError(f"{path}: OOD set {shortened(repr(name))}; expected names of their own")
    near, far = (
        {name: _scores(path, name, entry) for name, entry in side.items() if entry is not None}
        for side in sides
    )
    if test is None or not (near or far):  # an unfinished evaluation
        return {}
    id_scores = _scores(path, "id", test)
    labels = pairs[0][1] if isinstance(pairs[0][1], np.ndarray) else None
    found = {"ood": Saved(id_scores, near, far, _accuracy(path, pairs[:1]), labels)}
    if shifted and all(entry is not None for entry in shifted.values()):
        parts = [id_scores, *(_scores(path, name, entry) for name, entry in shifted.items())]
        found["fsood"] = Saved(np.concatenate(parts), near, far, _accuracy(path, pairs), labels)
    return found


def _scores(path: Path, name: str, entry: object) -> np.ndarray:
    """Return the middle one of (prediction, confidence, label)."""
    scores = entry[1] if isinstance(entry, list | tuple) and len(entry) == 3 else None
    if not isinstance(scores, np.ndarray) or (scores.size,) != scores.shape[:1]:
        raise ResultError(f"{path}: {name}: expected (prediction, confidence, label), a number per image")
    if scores.size == 0 or np.isnan(scores).any():
        raise ResultError(
            f"{path}: {name}: {np.isnan(scores).sum()} of {scores.size} scores are NaN; expected numbers"
        )
    return np.clip(scores.reshape(-1).astype(np.float64), -LARGEST, LARGEST)


def _accuracy(path: Path, pairs: Sequence[tuple[Any, Any]]) -> float:
    """Return the accuracy in percent over pairs of predictions and labels, NaN if some are missing."""
    hits = []
    for one, other in pairs:
        if one is None or other is None:
            return float("nan")
        arrays = isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
        if not arrays or one.shape != other.shape or one.ndim != 1 or not one.size:
            raise ResultError(f"{path}: predictions and labels do not match; expected a number per image")
        hits.append(one == other)
    return 100 * float(np.concatenate(hits).mean())

"""What a run left in its folder, gathered: tables, saved scores and searches of every method."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .results import (
    METHODS,
    SCHEMES,
    Identity,
    ResultError,
    arrange_search,
    find_tables,
    identify,
    read_search,
    read_table,
)
from .scores import Scores, fpr95_auroc, load_npz, load_pickle, load_search

#: How OpenOOD's leaderboard spells postprocessors.
NAMES = {
    **METHODS,
    "adascale_a": "AdaSCALE-A (OpenOOD)",
    "adascale_l": "AdaSCALE-L (OpenOOD)",
    **{
        name.lower(): name
        for name in ("KNN", "VIM", "ODIN", "MDS", "RMDS", "GEN", "SHE", "DICE", "OpenMax", "Gram")
    },
    **{
        name.lower(): name
        for name in ("GradNorm", "RankFeat", "fDBD", "NCI", "Relation", "OpenGAN", "NNGuide")
    },
    "temp_scaling": "TempScale",
    "mds_ensemble": "MDSEns",
    "klm": "KLM",
    "kl_matching": "KLM",
}


@dataclass(frozen=True)
class Method:
    """One method's figures, percent: rows OOD sets and averages, columns OpenOOD's metrics; NaN: unknown."""

    label: str
    stem: str
    near: tuple[str, ...]
    far: tuple[str, ...]
    mean: pd.DataFrame
    std: pd.DataFrame
    source: Path | None  # its CSV; None if computed from saved scores

    def value(self, row: str, metric: str) -> tuple[float, float]:
        """Mean and standard deviation, percent."""
        if row not in self.mean.index:
            return math.nan, math.nan
        mean: Any = self.mean.loc[row, metric]
        std: Any = self.std.loc[row, metric]
        return float(mean), float(std)


@dataclass
class Run:
    """Everything that a report shows of a folder."""

    folder: Path
    identity: Identity
    methods: dict[str, list[Method]] = field(default_factory=dict)  # by scheme, best near AUROC first
    scores: dict[str, dict[str, list[Scores]]] = field(default_factory=dict)  # by scheme and label, per run
    searches: dict[str, tuple[pd.DataFrame, list[str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def collect(folder: str | Path) -> Run:
    """Read every result CSV, saved score and search table below a folder; whatever is missing is left out.

    Raises :class:`~.results.ResultError` if there is nothing, if a file is malformed or unsafe to read, or if
    the folder holds runs of several datasets or networks.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ResultError(f"{folder}: no such folder; expected a run's folder")
    notes: list[str] = []
    tables, others = find_tables(folder)
    found: dict[tuple[str, str], list[Method]] = defaultdict(list)
    identities = []
    for path in tables:
        identity, table = identify(path), read_table(path)
        identities.append(identity)
        label = _label(identity)
        notes += [f"{path.relative_to(folder)}: {note}" for note in table.notes]
        method = Method(label, identity.stem, table.near, table.far, table.mean, table.std, path)
        found[identity.scheme or "ood", label].append(method)
    scores: dict[str, dict[str, list[Scores]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.rglob("scores/*.pkl")):
        identity = identify(path)
        identities.append(identity)
        for scheme, saved in load_pickle(path).items():
            scores[scheme][_label(identity)].append(saved)
    for path in sorted({path.parent for path in folder.rglob("scores/*.npz")}):
        identity = identify(path.parent / "ood.csv")
        identities.append(identity)
        beside = path.parent / "ood.csv"
        npz = load_npz(path, read_table(beside).near if beside.is_file() else ())
        if npz is not None:
            scores[identity.scheme or "ood"][_label(identity)].append(npz)
    runs = sorted({f"{i.dataset} {i.network} {i.training or ''}".strip() for i in identities if i.run})
    if len(runs) > 1:
        raise ResultError(
            f"{folder}: holds several runs ({'; '.join(runs)}); expected the folder of one of them"
        )
    searches = {
        path.stem.removeprefix("search_"): read_search(path)
        for path in others
        if path.name.startswith("search_")
    }
    for path in sorted(folder.rglob("postprocessors/*.pkl")):
        searched = load_search(path)
        if searched is not None and {"p_min", "p_max"} <= set(searched):
            where = "" if len(list(folder.glob("s*/postprocessors"))) < 2 else f" [{path.parent.parent.name}]"
            searches[path.stem + where] = arrange_search(searched, path)
    if not (found or scores or searches):
        raise ResultError(
            f"{folder}: nothing to report; expected result CSVs (ood/, fsood/, ood.csv), saved scores "
            "(scores/*.pkl, scores/*.npz) or search tables (search_*.csv)"
        )
    run = Run(folder, next((i for i in identities if i.run), Identity("")), searches=searches, notes=notes)
    for scheme in SCHEMES:
        methods = [one for (kind, _), group in found.items() if kind == scheme for one in _merge(group, run)]
        known = {method.label: method for method in methods}
        for label, repeats in scores[scheme].items():
            computed = _from_scores(label, repeats)
            if label in known:
                _check_same(known[label], computed, scheme, notes)
            else:
                methods.append(computed)
        if methods:
            methods.sort(key=lambda method: -np.nan_to_num(method.value("nearood", "AUROC")[0], nan=-1.0))
            run.methods[scheme], run.scores[scheme] = methods, dict(scores[scheme])
            for method in methods:
                if (method.near, method.far) != (methods[0].near, methods[0].far):
                    notes.append(
                        f"{method.label} was evaluated on other OOD sets than {methods[0].label}: "
                        "their averages are not comparable"
                    )
    return run


def _label(identity: Identity) -> str:
    return NAMES.get(identity.stem.lower()) or (
        f"{identity.method} ({identity.stem})" if identity.method else identity.stem
    )


def _merge(group: list[Method], run: Run) -> list[Method]:
    """main.py writes one table per seed: their mean and standard deviation, as eval_ood.py computes them."""
    if len(group) == 1:
        return group
    first, paths = group[0], [str(m.source.parent.relative_to(run.folder)) for m in group if m.source]
    same = all(list(method.mean.index) == list(first.mean.index) for method in group)
    if not same or any(method.source is None or method.source.name != "ood.csv" for method in group):
        return [replace(m, label=f"{m.label} [{where}]") for m, where in zip(group, paths, strict=True)]
    stacked = np.stack([method.mean.to_numpy() for method in group])
    run.notes.append(f"{first.label}: mean ± standard deviation over {', '.join(paths)}")
    mean, std = (
        pd.DataFrame(values, index=first.mean.index, columns=first.mean.columns)
        for values in (stacked.mean(0), stacked.std(0))
    )
    return [replace(first, mean=mean, std=std)]


def _from_scores(label: str, runs: list[Scores]) -> Method:
    near, far = tuple(runs[0].near), tuple(runs[0].far)
    rows = [*near, *(["nearood"] if near else []), *far, *(["farood"] if far else [])]
    stacked = []
    for saved in runs:
        frame = pd.DataFrame(math.nan, index=rows, columns=["FPR@95", "AUROC", "ACC"])
        for names, side, average in ((near, saved.near, "nearood"), (far, saved.far, "farood")):
            for name in set(names) & set(side):
                frame.loc[name, ["FPR@95", "AUROC"]] = fpr95_auroc(saved.id, side[name])
            if names:
                frame.loc[average] = frame.loc[list(names)].mean(skipna=False)
        frame["ACC"] = math.nan if saved.accuracy is None else saved.accuracy
        stacked.append(frame.to_numpy())
    spread = np.std(stacked, axis=0) if len(runs) > 1 else np.full_like(stacked[0], math.nan)
    mean, std = (
        pd.DataFrame(values, index=frame.index, columns=frame.columns)
        for values in (np.mean(stacked, axis=0), spread)
    )
    return Method(label, label, near, far, mean, std, None)


def _check_same(table: Method, computed: Method, scheme: str, notes: list[str]) -> None:
    """OpenOOD reuses saved scores, and keeps old CSVs on ImageNet: the two can be of different runs."""
    for row in ("nearood", "farood"):
        told, saved = table.value(row, "AUROC")[0], computed.value(row, "AUROC")[0]
        if abs(told - saved) > 0.05:
            notes.append(
                f"{table.label} ({scheme}): the table says {row} AUROC {told:.2f}, the saved scores give "
                f"{saved:.2f}: one of the two is older"
            )

"""The result format: a run in memory, and as a folder.

A run's folder holds ``run.json``, a table per method as OpenOOD writes it (``ood/NAME.csv``) and the candidates of each
search (``search/NAME.csv``). One table of images is ``images.parquet``, or ``images.csv`` if pyarrow is not installed or a
path is not UTF-8. A run of full-spectrum OOD detection can be in the same folder: ``fsood/NAME.csv``, ``run_fsood.json``
and ``images_fsood.parquet``.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .._version import __version__
from ..errors import ResultError
from ..io import replacing
from .names import AVERAGES, SCHEMES, file_names, is_name, label_of, shortened
from .tables import read_table, save_csv

FORMAT = 1
IMAGE_COLUMNS = ("set", "path", "label", "prediction")
"""Columns of the table of images that do not belong to a method."""
KINDS = ("score", "percentile", "oodness")
"""Values of a method for each image, in columns such as ``score_msp``: larger scores are more in-distribution;
AdaSCALE's percentile p is in percent; ``oodness`` is AdaSCALE's Q'."""
LARGEST = 1e300  # infinite scores become finite, so that they can be drawn


@dataclass
class MethodResult:
    """Results of one method."""

    name: str
    """In files and commands, such as ``adascale``."""
    table: pd.DataFrame
    """Rows: the near sets, ``nearood`` (their mean), the far sets, ``farood``; columns FPR@95, AUROC, AUPR_IN, AUPR_OUT
    and ACC, in percent."""
    label: str = ""
    """In tables and figures (default: from the name)."""
    std: pd.DataFrame | None = None
    """Standard deviation over training runs, if ``table`` is a mean over several."""
    search: pd.DataFrame | None = None
    """The candidates of a search, with their AUROC on validation images (``auroc``, in percent)."""
    settings: dict[str, Any] = field(default_factory=dict)
    published: bool = False
    """True for published results of a method that was not run."""

    def __post_init__(self) -> None:
        self.label = self.label or label_of(self.name)

    def value(self, row: str, metric: str) -> tuple[float, float]:
        """Return mean and standard deviation in percent, NaN if unknown."""

        def at(table: Any) -> float:
            if table is None or row not in table.index or metric not in table.columns:
                return math.nan
            return float(table.at[row, metric])

        return at(self.table), at(self.std)


@dataclass
class Run:
    """Results of one evaluation: all methods on the same images."""

    methods: list[MethodResult]
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    scheme: str = "ood"
    """``ood``, or ``fsood`` if covariate-shifted images count as ID (full-spectrum OOD detection)."""
    id: str | None = None
    """Name of the ID dataset."""
    network: str | None = None
    images: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(IMAGE_COLUMNS)))
    """A row per test image: ``set`` (``id`` or an OOD set), ``path`` (empty if unknown), ``label`` and ``prediction``
    (classes, −1 if unknown), and a float64 column for each of :data:`KINDS` that a method has, NaN for sets without."""
    classes: tuple[str, ...] = ()
    """Names of the classes 0, 1, …, if known."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the evaluation, such as the transform and the precision."""
    title: str = ""
    date: str = field(
        default_factory=lambda: datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    )
    """ISO 8601, empty if unknown."""
    version: str = __version__
    """Of openood-adascale."""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ResultError(f"scheme: {self.scheme!r}; expected {' or '.join(SCHEMES)}")
        for setting, names in (("near, far", self.sets), ("methods", [one.name for one in self.methods])):
            for name in names:
                if not is_name(name) or name in (*AVERAGES, "id") or names.count(name) > 1:
                    raise ResultError(f"{setting}: {name!r}; expected names of their own, as text")
        labels = [one.label for one in self.methods]
        for method in self.methods:
            if labels.count(method.label) > 1:
                method.label = f"{method.label} [{method.name}]"
        columns = [f"{kind}_{method.name}" for method in self.methods for kind in KINDS]
        wrong = ({*self.images} ^ {*IMAGE_COLUMNS}) - {*columns}
        wrong |= {*self.images.get("set", [])} - {"id", *self.sets}
        if wrong:
            raise ResultError(f"images: columns or sets {shortened(str(wrong))}; expected those of the run")
        columns = [name for name in columns if name in self.images]
        values = self.images[columns].astype(np.float64).clip(-LARGEST, LARGEST)
        missing = values.isna().groupby(self.images["set"]).mean()
        for (key, column), share in missing.stack().items():
            if 0 < share < 1:
                raise ResultError(f"images: {column} of {key}: NaN; expected a number per image")
        self.images = self.images.assign(**values).astype({"label": np.int64, "prediction": np.int64})

    @classmethod
    def from_results(
        cls,
        results: Mapping[str, Any],
        labels: Mapping[str, str] | None = None,
        settings: Mapping[str, dict[str, Any]] | None = None,
        **about: Any,
    ) -> Run:
        """Return the results of ``evaluate`` as a run.

        Args:
            results: By method, as ``evaluate`` returns them.
            labels: By method (default: from the name).
            settings: Of the detectors, by method.
            about: ``id``, ``network``, ``title`` and ``settings`` of the run.

        Raises:
            ResultError: If there are no results, or results of other sets or images than the first.
        """
        first = next(iter(results.values()), None)
        if first is None:
            raise ResultError("results: {}; expected at least one method")
        methods, columns = [], {}
        for name, result in results.items():
            if (result.near, result.far, result.scheme) != (first.near, first.far, first.scheme):
                raise ResultError(
                    f"{name}: other OOD sets or scheme than the first method; expected the same"
                )
            search, own = result.search_results, (settings or {}).get(name, {})
            methods.append(
                MethodResult(name, result.table, (labels or {}).get(name, ""), search=search, settings=own)
            )
            columns[f"score_{name}"] = result.scores
            for kind, attribute in (("percentile", "percentiles"), ("oodness", "oodness")):
                found = {key: getattr(images, attribute, None) for key, images in result.images.items()}
                columns[f"{kind}_{name}"] = {key: part for key, part in found.items() if part is not None}
        images = image_table(columns, first.images)
        sets = (tuple(first.near), tuple(first.far), first.scheme)
        return cls(methods, *sets, images=images, classes=tuple(first.classes), **about)

    @property
    def sets(self) -> list[str]:
        """The OOD sets, near ones first."""
        return [*self.near, *self.far]

    def values(self, method: MethodResult, kind: str = "score") -> dict[str, np.ndarray]:
        """Return a method's values by set, ``id`` first: (N,) float64; empty if it has none.

        Args:
            method: A method of the run.
            kind: One of :data:`KINDS`.
        """
        column = f"{kind}_{method.name}"
        if column not in self.images:
            return {}
        found = {key: part.to_numpy() for key, part in self.images.groupby("set", sort=False)[column]}
        return {key: found[key] for key in ("id", *self.sets) if key in found and not np.isnan(found[key][0])}

    def ranked(self) -> list[MethodResult]:
        """Return the methods by near-OOD AUROC (far-OOD AUROC if there are no near sets), the best first."""

        def key(method: MethodResult) -> tuple[float, ...]:
            found = [round(method.value(row, "AUROC")[0], 2) for row in AVERAGES]
            return tuple(1.0 if math.isnan(value) else -value for value in found)

        return sorted(self.methods, key=key)


def image_table(
    columns: Mapping[str, Mapping[str, np.ndarray]], images: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Return a run's table of images.

    Args:
        columns: Values by column and set, (N,) each.
        images: Objects with ``labels``, ``predictions`` and ``paths`` by set (default: unknown).

    Raises:
        ResultError: If the columns have different numbers of images in a set.
    """
    parts = []
    for key in dict.fromkeys(key for values in columns.values() for key in values):
        found: dict[str, Any] = {name: np.ravel(own[key]) for name, own in columns.items() if key in own}
        if images and key in images:
            one = images[key]
            found |= {"label": np.asarray(one.labels), "prediction": np.asarray(one.predictions)}
            if len(one.paths):  # names of files may not be UTF-8, as pandas' text has to be
                found["path"] = pd.Series(list(map(str, one.paths)), dtype=object)
        counts = sorted({len(values) for values in found.values()})
        if len(counts) > 1 or counts == [0]:
            raise ResultError(f"{key}: {counts} images; expected the same images for all methods")
        unknown = {"set": key, "path": "", "label": -1, "prediction": -1}
        parts.append(pd.DataFrame(unknown, range(counts[0]), dtype=object).assign(**found))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(IMAGE_COLUMNS))


def run_file(folder: str | Path, scheme: str = "ood") -> Path:
    """Return the path of a run's ``run.json``, or ``run_fsood.json``."""
    return Path(folder) / f"{_stem('run', scheme)}.json"


def _stem(name: str, scheme: str) -> str:
    return name if scheme == "ood" else f"{name}_{scheme}"


def write_run(run: Run, folder: str | Path, save_tables: bool = True) -> Path:
    """Write a run to a folder and return the path of its ``run.json``, which is written last.

    Other files in the folder stay; the report names result tables that are not part of the run.

    Args:
        run: The run.
        folder: Folder, made if it does not exist.
        save_tables: False keeps tables that are there already, as OpenOOD's scripts write them.

    Raises:
        OSError: If a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, images = run_file(folder, run.scheme), folder / _stem("images", run.scheme)
    for old in (path, images.with_suffix(".parquet"), images.with_suffix(".csv")):
        old.unlink(missing_ok=True)
    about: dict[str, Any] = {"format": FORMAT, **vars(run), "methods": []}
    for method, file in zip(run.methods, file_names(one.name for one in run.methods), strict=True):
        table, search = folder / run.scheme / f"{file}.csv", folder / "search" / f"{file}.csv"
        if save_tables or not table.exists():
            save_csv(method.table, table, method.std)
        if method.search is not None:
            search.parent.mkdir(exist_ok=True)
            with replacing(search) as beside:
                method.search.to_csv(beside, index=False)
        entry = {"name": method.name, "label": method.label, "search": method.search is not None}
        about["methods"].append({**entry, "settings": method.settings})
    about["images"] = _write_images(run.images, images)
    with replacing(path) as beside:
        beside.write_text(json.dumps(about, indent=1, default=_plain) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    """Convert NumPy's numbers and anything else in settings to JSON types."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _write_images(images: pd.DataFrame, stem: Path) -> str | None:
    """Write the table of images and return its file name; None if there are no images.

    Paths in its folder are written relative to it, so that it can be moved.
    """
    root = os.path.join(os.path.abspath(stem.parent), "")
    paths = [path and os.path.abspath(path).removeprefix(root) for path in images["path"]]
    images = images.assign(path=pd.Series(paths, images.index, object))
    if images.empty:
        return None
    try:
        with replacing(path := stem.with_suffix(".parquet")) as beside:
            images.to_parquet(beside, engine="pyarrow", index=False)
    except (ImportError, UnicodeError):
        with replacing(path := stem.with_suffix(".csv")) as beside:
            images.to_csv(beside, index=False, errors="surrogateescape", quoting=csv.QUOTE_NONNUMERIC)
    return path.name


def read_run(folder: str | Path, scheme: str = "ood") -> Run:
    """Read a run that :func:`write_run` wrote; other files in the folder are ignored.

    Args:
        folder: The run's folder.
        scheme: ``ood`` or ``fsood``.

    Raises:
        ResultError: If the folder holds no run, or one of another format, or if a file is missing or damaged.
    """
    folder = Path(folder)
    path = run_file(folder, scheme)
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT or about["scheme"] != scheme:
            raise ValueError(f"format {about['format']!r}, scheme {about['scheme']!r}")
        methods = []
        files = file_names(entry["name"] for entry in about["methods"])
        for entry, file in zip(about["methods"], files, strict=True):
            table = read_table(folder / about["scheme"] / f"{file}.csv")
            search = pd.read_csv(folder / "search" / f"{file}.csv") if entry["search"] else None
            name, label, settings = entry["name"], str(entry["label"]), dict(entry["settings"])
            methods.append(MethodResult(name, table.mean, label, table.std, search, settings))
        known: dict[str, Any] = {key: str(about[key] or "") for key in ("version", "date", "title", "scheme")}
        known |= {key: about[key] and str(about[key]) for key in ("id", "network")}
        known |= {key: tuple(map(str, about[key])) for key in ("near", "far", "classes")}
        known |= {"settings": dict(about["settings"]), "notes": list(map(str, about["notes"]))}
        return Run(methods, images=_read_images(folder, about["images"], _stem("images", scheme)), **known)
    except ResultError:
        raise
    except Exception as error:  # pyarrow has errors of its own for damaged files
        raise ResultError(
            f"{path}: not a run that can be read ({type(error).__name__}: {error}); expected "
            f"format {FORMAT}: evaluate again"
        ) from error


def _read_images(folder: Path, name: object, stem: str) -> pd.DataFrame:
    if name is None:
        return pd.DataFrame(columns=list(IMAGE_COLUMNS))
    if name == f"{stem}.parquet":
        table = pd.read_parquet(folder / f"{stem}.parquet", engine="pyarrow")
    else:
        table = pd.read_csv(
            folder / f"{stem}.csv", dtype=object, keep_default_na=False, encoding_errors="surrogateescape"
        )
        for column in {*table} - {*IMAGE_COLUMNS[:2]}:
            table[column] = table[column].replace("", "nan").astype(np.float64)
    paths = [path and os.path.join(folder, path) for path in table["path"]]
    return table.assign(path=pd.Series(paths, table.index, object))

"""The result format: a run in memory, and as a folder.

A run's folder holds ``run.json``, a table per method as OpenOOD writes it (``ood/NAME.csv`` or ``fsood/NAME.csv``), the
candidates of each search (``search/NAME.csv``) and one table of images (``images.parquet``, or ``images.csv`` if pyarrow
is not installed).
"""

from __future__ import annotations

import csv
import datetime
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .._version import __version__
from ..errors import ResultError
from ..io import replacing
from ..metrics import COLUMNS
from .names import AVERAGES, SCHEMES, file_names, is_name, label_of, shortened
from .tables import read_table, save_csv

FORMAT = 1
_FIXED = ("set", "path", "label", "prediction")
_VALUES = {"scores": "score_", "percentiles": "percentile_", "oodness": "oodness_"}
"""Prefixes of the columns of a method in the table of images."""
LARGEST = 1e300  # infinite scores become finite, so that they can be drawn


@dataclass(frozen=True)
class Images:
    """The N images of one set, in the order of the scores."""

    labels: np.ndarray
    """(N,) int64, −1 if unknown."""
    predictions: np.ndarray
    """(N,) int64, classes that the network predicts, −1 if unknown."""
    paths: tuple[str, ...] = ()
    """N files, or none if they are unknown."""

    def __post_init__(self) -> None:
        for name in ("labels", "predictions"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int64))


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
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    """By set, ``id`` for the ID images: (N,) float64, larger is more in-distribution."""
    percentiles: dict[str, np.ndarray] = field(default_factory=dict)
    """AdaSCALE's adaptive percentile p of each image by set: (N,) float64, in percent."""
    oodness: dict[str, np.ndarray] = field(default_factory=dict)
    """AdaSCALE's OODness Q' of each image by set: (N,) float64."""
    search: pd.DataFrame | None = None
    """The candidates of a search, with their AUROC on validation images (``auroc``, in percent)."""
    settings: dict[str, Any] = field(default_factory=dict)
    published: bool = False
    """True for published results of a method that was not run."""

    def __post_init__(self) -> None:
        self.label = self.label or label_of(self.name)
        for kind in _VALUES:
            checked = {}
            for key, values in getattr(self, kind).items():
                values = np.asarray(values, np.float64).reshape(-1)
                if not len(values) or np.isnan(values).any():
                    raise ResultError(
                        f"{self.name}: {kind} of {key}: empty or NaN; expected a number per image"
                    )
                checked[key] = np.clip(values, -LARGEST, LARGEST)
            setattr(self, kind, checked)

    def value(self, row: str, metric: str) -> tuple[float, float]:
        """Return mean and standard deviation in percent, NaN if unknown."""
        return value_at(self.table, row, metric), value_at(self.std, row, metric)


def value_at(table: pd.DataFrame | None, row: str, column: str) -> float:
    """Return a cell, NaN if the table does not have it."""
    if table is None or row not in table.index or column not in table.columns:
        return math.nan
    found: Any = table.loc[row, column]
    return float(found)


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
    images: dict[str, Images] = field(default_factory=dict)
    """By set, as the scores."""
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
        for key in ("id", *self.sets):
            counts = {
                len(values) for one in self.methods for kind in _VALUES for values in _of(one, kind, key)
            }
            if key in self.images:
                images = self.images[key]
                counts |= {len(images.labels), len(images.predictions), len(images.paths or images.labels)}
            if len(counts) > 1:
                raise ResultError(f"{key}: {sorted(counts)} images; expected the same images for all methods")

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
        methods = []
        for name, result in results.items():
            if (result.near, result.far, result.scheme) != (first.near, first.far, first.scheme):
                raise ResultError(
                    f"{name}: other OOD sets or scheme than the first method; expected the same"
                )
            method = MethodResult(
                name,
                result.table,
                (labels or {}).get(name, ""),
                scores=result.scores,
                search=result.search_results,
                settings=(settings or {}).get(name, {}),
            )
            for kind in ("percentiles", "oodness"):
                found = {key: getattr(images, kind, None) for key, images in result.images.items()}
                setattr(method, kind, {key: values for key, values in found.items() if values is not None})
            method.__post_init__()
            methods.append(method)
        images = {
            key: Images(one.labels, one.predictions, tuple(map(str, one.paths)))
            for key, one in first.images.items()
        }
        return cls(
            methods,
            tuple(first.near),
            tuple(first.far),
            first.scheme,
            images=images,
            classes=tuple(first.classes),
            **about,
        )

    @property
    def sets(self) -> list[str]:
        """The OOD sets, near ones first."""
        return [*self.near, *self.far]

    def files(self) -> list[str]:
        """Return the methods' names as names of files."""
        return file_names(method.name for method in self.methods)

    def ranked(self) -> list[MethodResult]:
        """Return the methods by near-OOD AUROC (far-OOD AUROC if there are no near sets), the best first."""

        def key(method: MethodResult) -> tuple[float, ...]:
            found = [round(method.value(row, "AUROC")[0], 2) for row in AVERAGES]
            return tuple(1.0 if math.isnan(value) else -value for value in found)

        return sorted(self.methods, key=key)


def _of(method: MethodResult, kind: str, key: str) -> list[np.ndarray]:
    values = getattr(method, kind)
    return [values[key]] if key in values else []


def write_run(run: Run, folder: str | Path) -> Path:
    """Write a run to a folder and return the path of its ``run.json``.

    Files of an earlier run in the folder that this run does not have are removed. ``run.json`` is written last: a folder
    without it is incomplete.

    Raises:
        OSError: If a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_earlier(folder)
    methods = []
    for method, file in zip(run.methods, run.files(), strict=True):
        entry = {"name": method.name, "label": method.label, "table": f"{run.scheme}/{file}.csv"}
        save_csv(method.table, folder / entry["table"], method.std)
        if method.search is not None:
            entry["search"] = f"search/{file}.csv"
            (folder / "search").mkdir(exist_ok=True)
            with replacing(folder / entry["search"]) as beside:
                method.search.to_csv(beside, index=False)
        methods.append({**entry, "settings": method.settings})
    about = {
        "format": FORMAT,
        **{
            name: getattr(run, name)
            for name in ("version", "date", "title", "scheme", "id", "network", "near", "far", "classes")
        },
        "images": _write_images(run, folder),
        "methods": methods,
        "settings": run.settings,
        "notes": run.notes,
    }
    path = folder / "run.json"
    with replacing(path) as beside:
        beside.write_text(json.dumps(about, indent=1, default=_plain) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    """Convert NumPy's numbers and anything else in settings to what JSON has."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _remove_earlier(folder: Path) -> None:
    files = [folder / "images.parquet", folder / "images.csv"]
    path = folder / "run.json"
    if path.is_file():
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))["methods"]
            files += [
                _inside(folder, entry[key])
                for entry in entries
                for key in ("table", "search")
                if key in entry
            ]
        except (ValueError, TypeError, LookupError, OSError):
            pass  # not a run of ours: its files stay
        path.unlink()  # first: until the new one is written the folder is incomplete
    for file in files:
        file.unlink(missing_ok=True)


def _inside(folder: Path, name: object) -> Path:
    """Return the path of a file that ``run.json`` names.

    Raises:
        ResultError: If it is not one of the places that :func:`write_run` writes to.
    """
    if not isinstance(name, str) or not re.fullmatch(
        r"(?:ood|fsood|search)/[^/\\\0]+\.csv|images\.(?:csv|parquet)", name
    ):
        raise ResultError(
            f"{folder / 'run.json'}: file {name!r}; expected ood/NAME.csv, search/NAME.csv or images.*"
        )
    return folder / name


def _write_images(run: Run, folder: Path) -> str | None:
    """Write the table of images and return its file name; None if there are no scores."""
    values = {
        f"{prefix}{one.name}": getattr(one, kind) for one in run.methods for kind, prefix in _VALUES.items()
    }
    columns: dict[str, list[Any]] = {
        name: [] for name in (*_FIXED, *(name for name in values if values[name]))
    }
    for key in ("id", *run.sets):
        count = next((len(found[key]) for found in values.values() if key in found), 0)
        images = run.images.get(key) or Images(np.full(count, -1), np.full(count, -1))
        paths = [_relative(path, folder) for path in images.paths] or [""] * count
        fixed = ([key] * count, paths, images.labels.tolist(), images.predictions.tolist())
        for name, cells in columns.items():
            if name in _FIXED:
                cells += fixed[_FIXED.index(name)]
            else:
                cells += values[name][key].tolist() if key in values[name] else [math.nan] * count
    if not columns["set"]:
        return None
    name = "images.parquet" if _can_be_parquet(columns["path"]) else "images.csv"
    with replacing(folder / name) as beside:
        if name == "images.parquet":
            pd.DataFrame(columns).to_parquet(beside, engine="pyarrow", index=False)
        else:  # names of files may not be UTF-8
            with beside.open("x", encoding="utf-8", errors="surrogateescape", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
    return name


def _relative(path: str, folder: Path) -> str:
    """Return an absolute path; relative inside the run's folder, so that this can be moved."""
    path, root = os.path.abspath(path), os.path.abspath(folder)
    return os.path.relpath(path, root) if path.startswith(os.path.join(root, "")) else path


def _can_be_parquet(paths: list[str]) -> bool:
    try:
        import pyarrow  # noqa: F401

        "".join(paths).encode()
    except (ImportError, UnicodeEncodeError):
        return False
    return True


def read_run(folder: str | Path) -> Run:
    """Read a run that :func:`write_run` wrote; other files in the folder are ignored.

    Raises:
        ResultError: If the folder holds no run, or one of another format, or if a file is missing or damaged.
    """
    folder = Path(folder)
    path = folder / "run.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about, Mapping) or about.get("format") != FORMAT:
            found = about.get("format") if isinstance(about, Mapping) else None
            raise ResultError(
                f"{path}: format {shortened(repr(found))}; expected {FORMAT}: run evaluate again"
            )
        methods = []
        for entry in about["methods"]:
            table = read_table(_inside(folder, entry["table"]))
            search = _read_search(_inside(folder, entry["search"])) if entry.get("search") else None
            name, label, settings = str(entry["name"]), str(entry["label"]), dict(entry["settings"])
            methods.append(MethodResult(name, table.mean, label, table.std, search=search, settings=settings))
        run = Run(methods, tuple(about["near"]), tuple(about["far"]), about["scheme"])
        run.id, run.network = (None if about[key] is None else str(about[key]) for key in ("id", "network"))
        run.title, run.date, run.version = (str(about[key]) for key in ("title", "date", "version"))
        run.classes, run.notes = tuple(map(str, about["classes"])), list(map(str, about["notes"]))
        run.settings = dict(about["settings"])
        return _with_images(run, _inside(folder, about["images"])) if about["images"] else run
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, csv.Error) as error:
        if isinstance(error, ResultError):
            raise
        raise ResultError(
            f"{path}: not a run of openood-adascale ({error!r}); expected format {FORMAT}"
        ) from error


def _read_search(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: not a table of candidates: {error}") from error


def _with_images(run: Run, path: Path) -> Run:
    """Add scores and images to a run."""
    table = _read_columns(path)
    kinds = {
        f"{prefix}{method.name}": getattr(method, kind)
        for method in run.methods
        for kind, prefix in _VALUES.items()
    }
    sets = list(dict.fromkeys(table.get("set", [])))
    wrong = [*({*table} ^ {*_FIXED}) - {*kinds}, *{*sets} - {"id", *run.sets}]
    if wrong:
        raise ResultError(
            f"{path}: columns or sets {shortened(str(wrong))}; expected those that run.json names"
        )
    for key in sets:
        rows = [row for row, one in enumerate(table["set"]) if one == key]
        paths = tuple(os.path.join(path.parent, table["path"][row]) for row in rows if table["path"][row])
        labels, predictions = (np.array([table[name][row] for row in rows], np.int64) for name in _FIXED[2:])
        run.images[key] = Images(labels, predictions, paths if len(paths) == len(rows) else ())
        for name in {*table} - {*_FIXED}:
            found = np.array([table[name][row] or "nan" for row in rows], np.float64)
            if not np.isnan(found).all():
                kinds[name][key] = found
    for method in run.methods:
        method.__post_init__()  # checks the values
    return replace(run)


def _read_columns(path: Path) -> dict[str, list[Any]]:
    if path.suffix == ".parquet":
        try:
            frame = pd.read_parquet(path, engine="pyarrow")
        except ImportError as error:
            raise ResultError(
                f"{path}: pyarrow is not installed; expected it (pip install pyarrow)"
            ) from error
        except Exception as error:  # pyarrow has errors of its own for damaged files
            raise ResultError(f"{path}: cannot be read as Parquet: {error}") from error
        return {str(name): frame[name].tolist() for name in frame}
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        names, *rows = csv.reader(file)
    return {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)}


def table_of(
    rows: Mapping[str, Mapping[str, float]], near: Sequence[str], far: Sequence[str]
) -> pd.DataFrame:
    """Return a result table from metrics by OOD set, with the averages ``nearood`` and ``farood``."""
    made = {}
    for average, names in (("nearood", near), ("farood", far)):
        if names:
            made.update({name: rows.get(name, {}) for name in names})
            made[average] = {
                column: float(np.mean([rows.get(name, {}).get(column, math.nan) for name in names]))
                for column in COLUMNS
            }
    return pd.DataFrame.from_dict(made, orient="index", columns=None).reindex(columns=list(COLUMNS))

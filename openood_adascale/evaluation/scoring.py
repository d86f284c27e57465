"""Detectors fitted on folders of images, and images scored with them: the commands ``fit`` and ``score``."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import importlib.util
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from ..data.files import ImageFiles, find_broken, find_images
from ..detectors.base import Detector, StreamingDetector
from ..detectors.registry import load_detector
from ..detectors.serialization import read_detector
from ..detectors.settings import read_yaml
from ..errors import ImageError, SettingError
from ..features.cache import feature_cache
from ..io import replacing
from ..models.loading import LoadedNetwork, load_network
from ..models.specs import DEFAULT
from ..models.weights import Say
from .own_images import ImageReader, make_detector

NOTED = ("network", "weights", "transform")
"""Options that a detector's file notes."""
_LIBRARIES = ("torchvision:", "timm:", "hf:")
COLUMNS = {"path": "string", "prediction": "int64", "class": "string", "score": "float64", "ood": "bool"}
"""Columns of scores, and their types in Parquet files."""
FORMATS = ("csv", "jsonl", "parquet")
Row = dict[str, Any]
_BLOCK = 65536  # rows of a Parquet file in memory
_WINDOW = 1024  # images that are looked at for broken ones when one is met


# Fitting.


def fit_folders(options: Mapping[str, Any], say: Say) -> Detector[Any, Any]:
    """Fit a detector on folders of images, or search its settings, and write it to a file; options are the command's."""
    output = _output_file(options["output"])
    reader = ImageReader(options, say)
    settings = _settings(options.get("set") or ())
    detector = make_detector(options["method"], reader.loaded.network, options, settings)
    val = reader.files("val", options["val"], options.get("labels"))
    reader.check_class_names(val)
    classes = reader.with_classes("val", val).classes if val.classes else reader.loaded.classes
    loaders = {"val": reader.loader("val", val)}
    for name in ("train", "ood_val"):
        if options.get(name) is not None:
            loaders[name] = reader.loader(name, reader.files(name, options[name]))
    if detector.requires_fit and detector.settings.split not in loaders:
        raise SettingError("--train", None, f"a folder: {detector.settings!r} is fitted on training images")
    with feature_cache(options.get("cache_dir"), options.get("cache_tag")):
        _fit(detector, loaders, reader, say)
        if detector.validation_scores is None:
            detector.fit_threshold(loaders["val"], reader.progress)
    detector.save(output, {**_noted(options), "classes": list(classes)})
    share = f"95 % of {len(val)} validation images score {detector.threshold():.6g} or more"
    say(f"{detector!r}; {share}; {output}")
    return detector


def _output_file(name: str) -> Path:
    output = Path(name).expanduser()
    if output.is_dir() or not output.parent.is_dir():
        raise SettingError("--output", name, "a file name in an existing directory")
    return output


def _fit(detector: Detector[Any, Any], loaders: Mapping[str, Any], reader: ImageReader, say: Say) -> None:
    fit_loader = loaders.get(detector.settings.split)
    if "ood_val" not in loaders or not detector.default_sweep:
        detector.fit(loaders["val"] if fit_loader is None else fit_loader, reader.progress)
        return
    more = {"fit_loader": fit_loader} if isinstance(detector, StreamingDetector) else {}
    found = detector.search(loaders["val"], loaders["ood_val"], progress=reader.progress, **more)
    names = [name.removesuffix("_list") for name in detector.default_sweep]
    told = ", ".join(f"{name} = {getattr(found.best_settings, name)!r}" for name in names)
    auroc = f"AUROC {found.best_auroc:.2f} on the validation images"
    say(f"searched {len(found.results)} candidates: {told}; {auroc}")


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """Return the settings in words like ``k1=2``, whose values are YAML."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals) or name in found:
            raise SettingError("--set", word, "NAME=VALUE, such as percentile=[80,85], each name once")
        try:
            found[name] = read_yaml(value)
        except yaml.YAMLError:
            found[name] = value  # the settings refuse it with a reason
    return found


# Saved detectors and their networks.


def _noted(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the network was loaded by, with paths that can be found from anywhere."""
    found = {name: options.get(name) for name in NOTED}
    if found["weights"] not in (None, DEFAULT):
        found["weights"] = os.path.abspath(found["weights"])
    network = str(found["network"])
    if network.startswith("hf:") and os.path.isdir(place := os.path.expanduser(network[3:])):
        found["network"] = f"hf:{os.path.abspath(place)}"
    return found


def load_fitted(
    file: str | os.PathLike[str], options: Mapping[str, Any], say: Say | None = None
) -> tuple[Detector[Any, Any], LoadedNetwork]:
    """Return a saved detector and its network, with the names of the classes that the detector's file has.

    The options ``network`` (which may be loaded already), ``weights`` and ``transform`` replace those that the file notes. A
    network or transform that is code, not a library's, is run only if it is named here.
    """
    notes = read_detector(file).notes
    loaded = options.get("network")
    if not isinstance(loaded, LoadedNetwork):
        spec, weights, transform = _noted_or_given(os.fspath(file), notes, options)
        loaded = load_network(spec, weights, transform, say)
    classes = notes.get("classes")
    if isinstance(classes, list) and classes:
        loaded.classes = list(map(str, classes))
    return load_detector(file, loaded.network), loaded


def _noted_or_given(file: str, notes: Mapping[str, Any], options: Mapping[str, Any]) -> list[Any]:
    """Return network, weights and transform: as given, and otherwise as noted in the detector's file."""
    found = {name: options.get(name) for name in NOTED}
    noted = {name: notes[name] for name in NOTED if isinstance(notes.get(name), str)}
    if found["network"] not in (None, noted.get("network")):
        return list(found.values())  # weights of another network need not fit this one
    for name, value in noted.items():
        if found[name] is not None:
            continue
        if name == "weights" and value != DEFAULT and not os.path.isfile(value):
            raise SettingError("--weights", None, f"their present place: {file} was made with {value!r}")
        if name != "weights" and ":" in value and not value.startswith(_LIBRARIES):
            told = f"{value!r}, which is code, and only run if it is named"
            raise SettingError(f"--{name}", None, f"the one that {file} was made with: {told}")
        found[name] = value
    if found["network"] is None:
        raise SettingError("--network", None, f"the network that {file} was made for")
    return list(found.values())


# Scoring.


@dataclass
class Scored:
    """Counts of images that :func:`score_folders` has scored."""

    images: int = 0
    """Images scored, those of an interrupted run included."""
    ood: int = 0
    """Images that are OOD."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of each image that could not be read."""

    def count(self, row: Row) -> Row:
        """Count a row, and return it."""
        self.images, self.ood = self.images + 1, self.ood + int(row["ood"])
        return row


def score_folders(options: Mapping[str, Any], say: Say, stdout: IO[str]) -> Scored:
    """Score images in files, folders and lists, and write a row for each to ``stdout`` or ``output``.

    With ``output``, rows are kept in ``OUTPUT.partial`` as they are scored, which becomes the output in the end. A run with
    the same detector, images and threshold goes on from there. Images that cannot be read are passed over.
    """
    output = None if options.get("output") is None else _output_file(options["output"])
    form = _format(options.get("format"), output)
    detector, loaded = load_fitted(options["detector"], options, say)
    reader = ImageReader(options, say, loaded)
    threshold = detector.threshold(options["tpr"])
    paths = list(dict.fromkeys(path for place in options["paths"] for path in find_images(place).paths))
    files = ImageFiles(paths, transform=loaded.transform)
    found = Scored()
    score = functools.partial(_score, detector, reader, threshold, found)
    with feature_cache(options.get("cache_dir"), options.get("cache_tag")):
        if output is None:
            write = _writer(stdout, form)
            for row in score(files):
                write(row)
            return found
        partial = output.with_name(f"{output.name}.partial")
        _begin(partial, _key(options, loaded.classes, threshold, files), say)
        done = {found.count(row)["path"] for row in _rows_in(partial)}
        if done:
            say(f"images: {len(done)} of {len(files)} are scored already, in {partial}")
        with partial.open("a", encoding="utf-8") as file:
            for row in score(files.without(done)):
                file.write(json.dumps(row) + "\n")
                file.flush()
    with replacing(output) as beside:
        _convert(_rows_in(partial), beside, form)
    partial.unlink()
    return found


def _format(chosen: str | None, output: Path | None) -> str:
    ending = output.suffix[1:].lower() if output else ""
    form = chosen or (ending if ending in FORMATS else "csv")
    if form not in FORMATS:
        raise SettingError("--format", form, ", ".join(FORMATS))
    if form == "parquet" and output is None:
        raise SettingError("--format", form, "csv or jsonl without --output")
    if form == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise SettingError("--format", form, "an installed pyarrow (pip install pyarrow)")
    return form


def _score(
    detector: Detector[Any, Any], reader: ImageReader, threshold: float, found: Scored, files: ImageFiles
) -> Iterator[Row]:
    """Yield a row for each image that can be read, in order."""
    classes = reader.loaded.classes
    while len(files):
        done = 0
        try:
            for predictions, scores, _ in detector.predict_batches(
                reader.loader_over(files), reader.progress
            ):
                for prediction, score in zip(predictions.tolist(), scores.tolist(), strict=True):
                    name = classes[prediction] if prediction < len(classes) else ""
                    values = files.paths[done], prediction, name, score, score < threshold
                    done += 1
                    yield found.count(dict(zip(COLUMNS, values, strict=True)))
            return
        except ImageError as error:
            left = files.without(files.paths[:done])
            # Several at once, since each time the loader is started again.
            ahead = ImageFiles(left.paths[: max(_WINDOW, 8 * reader.batch_size)], None, files.transform)
            broken = find_broken(ahead, reader.workers, False)
            # Images of several sizes, or broken now and then.
            broken = broken or [(error.path, error.why)] * (error.path in left.paths)
            if not broken:
                raise
            found.broken += broken
            files = left.without(path for path, _ in broken)


# Output.


def _key(options: Mapping[str, Any], classes: list[str], threshold: float, files: ImageFiles) -> str:
    """Return a fingerprint of all that the rows depend on."""
    digest = hashlib.blake2b(Path(options["detector"]).expanduser().read_bytes(), digest_size=16)
    digest.update(repr([threshold, *(options.get(name) for name in NOTED), classes]).encode())
    for path in files.paths:
        with contextlib.suppress(OSError):  # reported when it is read
            state = os.stat(path)
            digest.update(f"{path!r} {state.st_size} {state.st_mtime_ns};".encode())
    return digest.hexdigest()


def _begin(partial: Path, key: str, say: Say) -> None:
    """Begin a file of JSON lines with a fingerprint, or go on with one that has the same."""
    first = json.dumps({"key": key}).encode() + b"\n"
    content = partial.read_bytes() if partial.is_file() else b""
    if content.startswith(first):
        os.truncate(partial, content.rfind(b"\n") + 1)  # without a torn last line
        return
    if content:
        say(f"{partial}: begun again, as it is of another detector, threshold or images")
    partial.write_bytes(first)


def _rows_in(partial: Path) -> Iterator[Row]:
    with partial.open(encoding="utf-8") as file:
        next(file)
        yield from map(json.loads, file)


def _writer(file: IO[str], form: str) -> Callable[[Row], Any]:
    """Return a function that writes a row as CSV or JSON lines."""
    if form == "jsonl":
        return lambda row: file.write(json.dumps(row) + "\n")
    rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    rows.writeheader()
    return lambda row: rows.writerow({**row, "ood": int(row["ood"])})


def _convert(rows: Iterator[Row], path: Path, form: str) -> None:
    if form == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema(list(COLUMNS.items()))
        with parquet.ParquetWriter(path, schema) as file:
            while block := list(itertools.islice(rows, _BLOCK)):
                block = [{**row, "path": utf8_text(row["path"])} for row in block]
                file.write_table(pa.Table.from_pylist(block, schema))
        return
    # File names that are not UTF-8 are kept as they are.
    with path.open("x", encoding="utf-8", errors="surrogateescape", newline="") as text:
        write = _writer(text, form)
        for row in rows:
            write(row)


def utf8_text(text: str) -> str:
    """Return a text in which bytes of a file name that are not UTF-8 are escaped, as Parquet requires."""
    return text.encode("utf-8", "backslashreplace").decode()

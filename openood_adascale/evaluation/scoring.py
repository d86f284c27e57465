"""Detectors fitted on folders of images, and images scored with them: the commands ``fit`` and ``score``."""

from __future__ import annotations

import contextlib
import csv
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
from ..data.labels import with_classes
from ..detectors.base import Detector, StreamingDetector
from ..detectors.registry import load_detector
from ..detectors.serialization import read_detector
from ..detectors.settings import read_yaml
from ..errors import ImageError, SettingError
from ..features.cache import feature_cache
from ..io import replacing
from ..models.specs import DEFAULT
from .own_images import ImageReader, Say, make_detector

NOTED = ("network", "weights", "transform")
"""Options that a detector's file notes."""
_LIBRARIES = ("torchvision:", "timm:", "hf:")
COLUMNS = ("path", "prediction", "class", "score", "ood")
FORMATS = ("csv", "jsonl", "parquet")
Row = dict[str, Any]
_BLOCK = 65536  # rows of a Parquet file in memory
_WINDOW = 1024  # images that are looked at for broken ones when one is met


# Fitting.


def fit_folders(options: Mapping[str, Any], say: Say) -> Detector[Any, Any]:
    """Fit a detector on folders of images, or search its settings, and write it to a file.

    Args:
        options: The options of ``openood-adascale fit`` by name.
        say: Called with a line for each step.
    """
    output = _output_file(options["output"])
    reader = ImageReader(options, say)
    settings = _settings(options.get("set") or ())
    detector = make_detector(options["method"], reader.loaded.network, options, settings)
    val = reader.files("val", options["val"], options.get("labels"))
    classes = reader.loaded.classes
    reader.check_class_names(val)
    if val.classes:
        classes = with_classes(val, reader.class_count(val), classes, "--val").classes
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


def _noted(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the network was loaded by, with paths that can be found from anywhere."""
    found = {name: options.get(name) for name in NOTED}
    if found["weights"] not in (None, DEFAULT):
        found["weights"] = os.path.abspath(found["weights"])
    network = str(found["network"])
    if network.startswith("hf:") and os.path.isdir(place := os.path.expanduser(network[3:])):
        found["network"] = f"hf:{os.path.abspath(place)}"
    return found


def _network_of(file: str, notes: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return network, weights and transform: as given, and otherwise as noted in the detector's file."""
    found = {name: options.get(name) for name in NOTED}
    noted = {name: notes[name] for name in NOTED if isinstance(notes.get(name), str)}
    network = noted.get("network", "")
    if found["network"] is None:
        if not network.startswith(_LIBRARIES):
            told = f": {network!r}, which is code, and only run if it is named" if network else ""
            raise SettingError("--network", None, f"the network that {file} was made for{told}")
        found["network"] = network
    if found["network"] != network:  # weights of another network need not fit this one
        return found
    if found["weights"] is None and (weights := noted.get("weights")) is not None:
        if weights != DEFAULT and not os.path.isfile(weights):
            raise SettingError("--weights", None, f"their present place: {file} was made with {weights!r}")
        found["weights"] = weights
    if found["transform"] is None and (transform := noted.get("transform")) is not None:
        if ":" in transform and not transform.startswith(_LIBRARIES):
            told = f"{transform!r}, which is code, and only run if it is named"
            raise SettingError("--transform", None, f"the one that {file} was made with: {told}")
        found["transform"] = transform
    return found


# Scoring.


@dataclass
class Summary:
    """Summary of a scoring run."""

    counted: int = 0
    """Images scored, those of an interrupted run included."""
    ood: int = 0
    """Images that are OOD."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of each image that could not be read."""

    def count(self, row: Row) -> None:
        """Count a row."""
        self.counted, self.ood = self.counted + 1, self.ood + int(row["ood"])


class Scorer:
    """A detector from a file with its network, ready to score images.

    Args:
        file: The detector, as :func:`fit_folders` or ``detector.save`` wrote it.
        options: The options of ``openood-adascale score`` by name. The file says which network of torchvision's, timm's or
            transformers' it was made for, and where its weights were; code of your own is run only if it is named here.
        say: Called with a line for each step.
    """

    def __init__(self, file: str, options: Mapping[str, Any], say: Say) -> None:
        notes = read_detector(file).notes
        self._options = {**options, **_network_of(file, notes, options)}
        self._say = say
        self._file = file
        self._reader = ImageReader(self._options, say)
        self.detector = load_detector(file, self._reader.loaded.network)
        classes = notes.get("classes")
        named = isinstance(classes, list) and bool(classes)
        self._classes = list(map(str, classes or ())) if named else self._reader.loaded.classes

    def score(
        self, places: Sequence[str], tpr: float, output: str | None, form: str, stdout: IO[str]
    ) -> Summary:
        """Score images in files, folders and lists, and write a row for each.

        With ``output``, rows are kept in ``OUTPUT.partial`` as they are scored, which becomes the output in the end. A run
        with the same detector, images and threshold goes on from there. Images that cannot be read are passed over.

        Args:
            places: See :func:`~openood_adascale.data.files.find_images`.
            tpr: Share of the ID validation images that is kept, in (0, 1].
            output: The file (default: ``stdout``).
            form: One of :data:`FORMATS`.
            stdout: Written to without ``output``.

        Raises:
            SettingError: No images, or a ``tpr`` or format that cannot be used.
            NotFittedError: The detector has no scores of validation images.
        """
        if form not in FORMATS:
            raise SettingError("--format", form, ", ".join(FORMATS))
        if form == "parquet" and output is None:
            raise SettingError("--format", form, "csv or jsonl without --output")
        if form == "parquet" and importlib.util.find_spec("pyarrow") is None:
            raise SettingError("--format", form, "an installed pyarrow (pip install pyarrow)")
        threshold = self.detector.threshold(tpr)
        paths = list(dict.fromkeys(path for place in places for path in find_images(place).paths))
        files = ImageFiles(paths, transform=self._reader.loaded.transform)
        summary = Summary()
        with feature_cache(self._options.get("cache_dir"), self._options.get("cache_tag")):
            if output is None:
                write = _writer(stdout, form)
                for row in self._rows(files, threshold, summary):
                    write(row)
            else:
                self._to_file(files, threshold, summary, _output_file(output), form)
        return summary

    def _to_file(
        self, files: ImageFiles, threshold: float, summary: Summary, output: Path, form: str
    ) -> None:
        partial = output.with_name(f"{output.name}.partial")
        _begin(partial, self._key(files, threshold), self._say)
        done = set()
        for row in _rows_in(partial):
            summary.count(row)
            done.add(row["path"])
        if done:
            self._say(f"images: {len(done)} of {len(files)} are scored already, in {partial}")
        with partial.open("a", encoding="utf-8") as file:
            for row in self._rows(files.without(done), threshold, summary):
                file.write(json.dumps(row) + "\n")
                file.flush()
        with replacing(output) as beside:
            _convert(_rows_in(partial), beside, form)
        partial.unlink()

    def _key(self, files: ImageFiles, threshold: float) -> str:
        digest = hashlib.blake2b(Path(self._file).expanduser().read_bytes(), digest_size=16)
        digest.update(repr([threshold, *(self._options.get(name) for name in NOTED), self._classes]).encode())
        for path in files.paths:
            with contextlib.suppress(OSError):  # reported when it is read
                state = os.stat(path)
                digest.update(f"{path!r} {state.st_size} {state.st_mtime_ns};".encode())
        return digest.hexdigest()

    def _rows(self, files: ImageFiles, threshold: float, summary: Summary) -> Iterator[Row]:
        """Yield a row for each image that can be read, in order."""
        reader = self._reader
        while len(files):
            done = 0
            try:
                batches = self.detector.predict_batches(reader.loader_over(files), reader.progress)
                for predictions, scores, _ in batches:
                    for prediction, score in zip(predictions.tolist(), scores.tolist(), strict=True):
                        row = self._row(files.paths[done], prediction, score, threshold)
                        summary.count(row)
                        done += 1
                        yield row
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
                summary.broken += broken
                files = left.without(path for path, _ in broken)

    def _row(self, path: str, prediction: int, score: float, threshold: float) -> Row:
        name = self._classes[prediction] if prediction < len(self._classes) else ""
        return dict(zip(COLUMNS, (path, prediction, name, score, score < threshold), strict=True))


# Output.


def _begin(partial: Path, key: str, say: Say) -> None:
    """Begin a file of JSON lines with a fingerprint of detector, images and threshold, or go on with one."""
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

        kinds = pa.string(), pa.int64(), pa.string(), pa.float64(), pa.bool_()
        schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
        with parquet.ParquetWriter(path, schema) as file:
            while block := list(itertools.islice(rows, _BLOCK)):
                for row in block:  # Parquet holds UTF-8 alone
                    name = row["path"].encode("utf-8", "surrogateescape")
                    row["path"] = name.decode("utf-8", "backslashreplace")
                file.write_table(pa.Table.from_pylist(block, schema))
        return
    # File names that are not UTF-8 are kept as they are.
    with path.open("x", encoding="utf-8", errors="surrogateescape", newline="") as text:
        write = _writer(text, form)
        for row in rows:
            write(row)

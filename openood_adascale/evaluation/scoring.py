"""Detectors fitted on folders of images, and images scored with them: the commands ``fit`` and ``score``."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
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
from ..models.loading import DEFAULT
from .own_images import ImageReader, Say, make_detector

NOTED = ("network", "weights", "transform")
"""Options that a detector's file notes."""
_LIBRARIES = ("torchvision:", "timm:", "hf:")
COLUMNS = ("path", "prediction", "class", "score", "ood")
FORMATS = ("csv", "jsonl", "parquet")
_BLOCK = 65536  # rows of a Parquet file in memory
_WINDOW = 1024  # images that are looked at for broken ones when one is met


def fit_folders(options: Mapping[str, Any], say: Say) -> Detector[Any, Any]:
    """Fit a detector on folders of images, or search its settings, and write it to a file.

    Args:
        options: The options of ``openood-adascale fit`` by name.
        say: Called with a line for each step.

    Raises:
        SettingError: An option that cannot be used.
        ImageError: An image that cannot be read.
        CacheError: The cache cannot be read or written.
        DetectorFileError: The file cannot be written.
    """
    output = Path(options["output"]).expanduser()
    if output.is_dir() or not output.parent.is_dir():
        raise SettingError("--output", options["output"], "a file name in an existing directory")
    reader = ImageReader(options, say)
    detector = make_detector(
        options["method"], reader.loaded.network, options, _settings(options.get("set") or ())
    )
    val = reader.files("val", options["val"], options.get("labels"))
    classes = reader.loaded.classes
    if options.get("classes") is not None:
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
    say(
        f"{detector!r}; 95 % of {len(val)} validation images score {detector.threshold():.6g} or more; {output}"
    )
    return detector


def _fit(detector: Detector[Any, Any], loaders: Mapping[str, Any], reader: ImageReader, say: Say) -> None:
    fit_loader = loaders.get(detector.settings.split)
    if "ood_val" not in loaders or not detector.default_sweep:
        detector.fit(loaders["val"] if fit_loader is None else fit_loader, reader.progress)
        return
    more = {"fit_loader": fit_loader} if isinstance(detector, StreamingDetector) else {}
    found = detector.search(loaders["val"], loaders["ood_val"], progress=reader.progress, **more)
    names = [name.removesuffix("_list") for name in detector.default_sweep]
    told = ", ".join(f"{name} = {getattr(found.best_settings, name)!r}" for name in names)
    say(
        f"searched {len(found.results)} candidates: {told}; AUROC {found.best_auroc:.2f} on the validation images"
    )


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


@dataclass
class Summary:
    """Summary of a scoring run."""

    counted: int = 0
    """Images scored, those of an interrupted run included."""
    ood: int = 0
    """Images that are OOD."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of each image that could not be read."""


class Scorer:
    """A detector from a file with its network, ready to score images.

    Args:
        file: The detector, as :func:`fit_folders` or ``detector.save`` wrote it.
        options: The options of ``openood-adascale score`` by name. The file says which network of torchvision's, timm's or
            transformers' it was made for, and where its weights were; code of your own is run only if it is named here.
        say: Called with a line for each step.

    Raises:
        DetectorFileError: No such file, damaged, or made for another network.
        SettingError: An option that cannot be used, or one that is required.
    """

    def __init__(self, file: str, options: Mapping[str, Any], say: Say) -> None:
        notes = read_detector(file).notes
        self._options = {**options, **_network_of(file, notes, options)}
        self._say = say
        self._file = file
        self._reader = ImageReader(self._options, say)
        self.detector = load_detector(file, self._reader.loaded.network)
        classes = notes.get("classes")
        self._classes = list(map(str, classes)) if isinstance(classes, list) and classes else []
        self._classes = self._classes or self._reader.loaded.classes

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
        if form == "parquet":
            _pyarrow()
        threshold = self.detector.threshold(tpr)
        paths = list(dict.fromkeys(path for place in places for path in find_images(place).paths))
        files = ImageFiles(paths, transform=self._reader.loaded.transform)
        summary = Summary()
        with feature_cache(self._options.get("cache_dir"), self._options.get("cache_tag")):
            if output is None:
                if form == "parquet":
                    raise SettingError("--format", form, "csv or jsonl without --output")
                writer = _Writer(stdout, form)
                for row in self._rows(files, threshold, summary):
                    writer.write(row)
            else:
                self._to_file(files, threshold, summary, Path(output).expanduser(), form)
        return summary

    def _to_file(
        self, files: ImageFiles, threshold: float, summary: Summary, output: Path, form: str
    ) -> None:
        if output.is_dir() or not output.parent.is_dir():
            raise SettingError("--output", str(output), "a file name in an existing directory")
        journal = _Journal(output.with_name(f"{output.name}.partial"), self._key(files, threshold), self._say)
        with journal:
            for row in journal.rows():
                summary.counted, summary.ood = summary.counted + 1, summary.ood + row["ood"]
            left = files.without(journal.paths)
            if journal.paths:
                self._say(
                    f"images: {len(journal.paths)} of {len(files)} are scored already, in {journal.path}"
                )
            for row in self._rows(left, threshold, summary):
                journal.add(row)
        with replacing(output) as beside:
            _convert(journal.rows(), beside, form)
        journal.path.unlink()

    def _key(self, files: ImageFiles, threshold: float) -> str:
        digest = hashlib.blake2b(Path(self._file).expanduser().read_bytes(), digest_size=16)
        digest.update(repr([threshold, *(self._options.get(name) for name in NOTED), self._classes]).encode())
        for path in files.paths:
            with contextlib.suppress(OSError):  # reported when it is read
                state = os.stat(path)
                digest.update(f"{path!r} {state.st_size} {state.st_mtime_ns};".encode())
        return digest.hexdigest()

    def _rows(self, files: ImageFiles, threshold: float, summary: Summary) -> Iterator[dict[str, Any]]:
        """Yield a row for each image that can be read, in order."""
        if self._reader.skip_broken and len(files):
            summary.broken += find_broken(files, self._reader.workers, self._reader.progress)
            files = files.without(path for path, _ in summary.broken)
        paths = files.paths
        while paths:
            done = 0
            loader = self._reader.loader_over(ImageFiles(paths, transform=files.transform))
            try:
                for predictions, scores, _ in self.detector.predict_batches(loader, self._reader.progress):
                    for prediction, score in zip(predictions.tolist(), scores.tolist(), strict=True):
                        row = self._row(paths[done], prediction, score, threshold)
                        done, summary.counted = done + 1, summary.counted + 1
                        summary.ood += row["ood"]
                        yield row
                return
            except ImageError as error:
                paths = paths[done:]
                ahead = paths[: max(_WINDOW, 8 * self._reader.batch_size)]
                broken = find_broken(
                    ImageFiles(ahead, transform=files.transform), self._reader.workers, False
                )
                if not broken and error.path in paths:  # images of several sizes, or broken now and then
                    broken = [(error.path, error.why)]
                if not broken:
                    raise
                summary.broken += broken
                names = {path for path, _ in broken}
                paths = [path for path in paths if path not in names]

    def _row(self, path: str, prediction: int, score: float, threshold: float) -> dict[str, Any]:
        classes = self._known_classes()
        name = classes[prediction] if prediction < len(classes) else ""
        return {
            "path": path,
            "prediction": prediction,
            "class": name,
            "score": score,
            "ood": int(score < threshold),
        }

    def _known_classes(self) -> list[str]:
        """Return the names of the classes, if there is one for each class of the network."""
        split = self.detector.extractor.split
        count = len(self._classes) if split is None else len(split.head.weight)
        if self._classes and len(self._classes) != count:
            self._say(
                f"class names are left out: there are {len(self._classes)}, and the network has {count} classes"
            )
            self._classes = []
        return self._classes


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


# Output.


class _Writer:
    """Writer of rows as CSV or JSON lines."""

    def __init__(self, file: IO[str], form: str) -> None:
        self._file = file
        self._csv = csv.DictWriter(file, COLUMNS, lineterminator="\n") if form == "csv" else None
        if self._csv is not None:
            self._csv.writeheader()

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        if self._csv is not None:
            self._csv.writerow({**row, "score": repr(row["score"])})
        else:
            self._file.write(json.dumps({**row, "ood": bool(row["ood"])}) + "\n")


class _Journal:
    """Rows of a run that is under way, in a file of JSON lines.

    Args:
        path: The file.
        key: Fingerprint of detector, images and threshold; a file with another one is begun again.
        say: Called with a line if the file is begun again.
    """

    def __init__(self, path: Path, key: str, say: Say) -> None:
        self.path = path
        self.paths: set[str] = set()
        """Images that are scored already."""
        self._file: IO[str] | None = None
        if path.is_file() and self._first() != key:
            say(f"{path}: begun again, as it is of another detector, threshold or images")
            path.unlink()
        if not path.is_file():
            path.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
        else:
            content = path.read_bytes()
            path.write_bytes(content[: content.rfind(b"\n") + 1])  # without a torn last line
            self.paths = {row["path"] for row in self.rows()}

    def _first(self) -> str:
        try:
            with self.path.open(encoding="utf-8") as file:
                found: str = json.loads(file.readline())["key"]
                return found
        except (ValueError, TypeError, LookupError):
            return ""

    def __enter__(self) -> _Journal:
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row to the file."""
        if self._file is None:
            raise ValueError("the journal is not open")
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all rows."""
        with self.path.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                yield json.loads(line)


def _convert(rows: Iterator[dict[str, Any]], path: Path, form: str) -> None:
    if form != "parquet":
        # File names that are not UTF-8 are kept as they are.
        with path.open("x", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = _Writer(file, form)
            for row in rows:
                writer.write(row)
        return
    pa = _pyarrow()
    kinds = (pa.string(), pa.int64(), pa.string(), pa.float64(), pa.bool_())
    schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
    with pa.parquet.ParquetWriter(path, schema) as parquet:
        while block := list(itertools.islice(rows, _BLOCK)):
            for row in block:  # Parquet holds UTF-8 alone
                name = row["path"].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                row.update(path=name, ood=bool(row["ood"]))
            parquet.write_table(pa.Table.from_pylist(block, schema))


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SettingError(
            "--format", "parquet", f"an installed pyarrow (pip install pyarrow): {error}"
        ) from error
    return pyarrow

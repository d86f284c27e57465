"""Scores of images in Parquet files, WebDataset shards or object storage, written as Parquet parts.

The images are divided into numbered parts that depend on the sources alone. A worker reads, decodes and scores a part, and
the driver writes it to a file of its own. A rerun in the same output directory scores the missing parts.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import re
import tarfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.decoding import extensions, read_image
from ..data.files import apply_transform
from ..detectors.base import Detector
from ..errors import ImageError, NotFiniteError, ResultError, SettingError
from ..features.loading import is_hidden
from ..io import replacing
from ..models.loading import LoadedNetwork
from ..models.transforms import described
from ..parallel import SharedObject, current_pool
from .own_images import chosen_device
from .scoring import COLUMNS, load_fitted, utf8_text

MANIFEST = "_manifest.json"  # readers of Parquet directories skip names that start with _
PART_IMAGES = (128, 2048)
"""Images in a part, at least and at most; a part of a WebDataset source is a shard."""
_PARTS = 256  # parts that a source is divided into, as far as the limits above allow
_SPLITS = 16  # parts of a row group at most, as each of them reads the images before its own, too
_BUFFER = 8 << 20  # bytes of a Parquet column that are read at a time
_PARQUET, _TAR = (".parquet", ".parq", ".pq"), (".tar", ".tar.gz", ".tgz")
_COLUMNS = {**COLUMNS, "error": "string"}
_ALLOWED = (
    "Parquet files, WebDataset shards (.tar), images, directories of them, or URLs such as s3://bucket/path"
)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def is_bulk(source: str) -> bool:
    """Return True for a URL, a Parquet file or a WebDataset shard."""
    return bool(_URL.match(source)) or source.lower().endswith((*_PARQUET, *_TAR))


@dataclass(frozen=True)
class Summary:
    """Counts of a scored dataset."""

    images: int
    """Rows of all parts."""
    ood: int
    """Images below the threshold."""
    errors: int
    """Images that could not be read, or whose features are not finite."""
    parts: int
    """Part files in the output directory."""
    new_parts: int
    """Part files that this call has written."""


class _File(NamedTuple):
    system: Any
    """Its pyarrow file system."""
    path: str
    """Path in the file system."""
    name: str
    """Name in the output."""
    kind: str
    """``parquet``, ``tar`` or ``image``."""
    state: str
    """Size and time."""


class _Part(NamedTuple):
    number: int
    files: tuple[_File, ...]
    """Image files, or one Parquet file or shard."""
    start: int
    """First row in a Parquet file."""
    stop: int

    @property
    def output(self) -> str:
        """Name of the file of its scores."""
        return f"part-{self.number:05}.parquet"

    def __str__(self) -> str:
        first, last = self.files[0], self.files[-1]
        place = first.name if first is last else f"{first.name} to {last.name}"
        rows = f", rows {self.start} to {self.stop - 1}" if first.kind == "parquet" else ""
        return f"part {self.number} ({place}{rows})"


@dataclass(frozen=True)
class _Job:
    """Everything that a worker needs besides a part."""

    detector: Detector[Any, Any]
    transform: Callable[[Any], Tensor]
    classes: list[str]
    threshold: float
    image_column: str
    path_column: str | None
    batch_size: int
    device: str | None


def score_dataset(
    detector_file: str | os.PathLike[str],
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    network: str | nn.Module | None = None,
    weights: str | os.PathLike[str] | None = None,
    transform: str | Callable[[Any], Tensor] | None = None,
    image_column: str = "image",
    path_column: str | None = None,
    tpr: float = 0.95,
    batch_size: int = 64,
    device: str | None = None,
    progress: bool | None = None,
) -> Summary:
    """Score the images of Parquet files, WebDataset shards or object storage, and write Parquet parts.

    ``output`` receives ``part-00000.parquet``, ``part-00001.parquet``, … with the columns path, prediction, class, score,
    ood and error, one row for each image in the order of the sources. An image that cannot be decoded has the reason in
    error and nulls in the other columns. The same call continues an interrupted one. Inside
    :func:`~openood_adascale.parallel.ray_workers` the workers score the parts.

    For example ``score_dataset("optfs.safetensors", "s3://bucket/images", "scores")``.

    Args:
        detector_file: File that ``detector.save`` or ``openood-adascale fit`` has written, with validation scores.
        sources: Parquet files with encoded images as bytes (or Hugging Face's ``{bytes, path}``), WebDataset shards, image
            files, directories of them, or URLs of pyarrow (``s3://``, ``gs://``, ``hdfs://``) or of an installed fsspec.
        output: Directory; a new or empty one, or that of the same call.
        network: Network as in :func:`~openood_adascale.load_network`, or a module (default: the
            one in the detector's file).
        weights: Weights for it, as there.
        transform: Transform, as there.
        image_column: Column of the images in Parquet files.
        path_column: Column of their names (default: file and row number, ``FILE#ROW``).
        tpr: True positive rate of ID validation images at the threshold, in (0, 1].
        batch_size: Images in a forward pass.
        device: Device of the network (default: cuda if available, else cpu).
        progress: True or False shows or hides the progress bar (default: shown in a terminal).

    Raises:
        SettingError: A setting or source that cannot be used, or an output directory of other settings.
        DetectorFileError: The detector's file cannot be used with this network.
        NotFittedError: The detector's file has no validation scores.
        ImageError: A file that is damaged as a whole, or gone.
        ResultError: A damaged part in the output directory.
        PoolError: The network cannot be sent to the workers.
        WorkerLostError: A part ended its worker three times; names its images.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise SettingError("sources", sources, "an installed pyarrow (pip install 'pyarrow>=17')")
    from pyarrow import parquet

    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise SettingError("batch_size", batch_size, "a whole number from 1 on")
    file, directory = Path(detector_file).expanduser(), Path(output).expanduser()
    detector, loaded = _load(file, network, weights, transform)
    threshold, columns = detector.threshold(tpr), (image_column, path_column)
    listed = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    files = _list_files([os.fspath(source) for source in listed])
    job = _Job(detector, loaded.transform, loaded.classes, threshold, *columns, batch_size, device)
    with ThreadPoolExecutor(16) as executor:
        row_groups = list(executor.map(functools.partial(_row_groups, columns), files))
    parts = list(_divide(files, row_groups))
    digest = hashlib.blake2b(
        repr([(*one[2:], rows) for one, rows in zip(files, row_groups, strict=True)]).encode()
    )
    settings = {
        "format": 2,
        "detector": hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest(),
        "transform": loaded.description,
        "tpr": tpr,
        "image_column": image_column,
        "path_column": path_column,
        "sources": digest.hexdigest()[:32],
    }
    _start_output(directory, settings)
    written = [(directory / part.output).exists() for part in parts]
    missing = [part for part, done in zip(parts, written, strict=True) if not done]
    counts = _count(directory, itertools.compress(parts, written))
    total = None if any(one.kind == "tar" for one in files) else sum(map(sum, row_groups))
    with tqdm(total=total, initial=counts[0], desc="Score", unit="image", disable=is_hidden(progress)) as bar:
        shared = {"job": SharedObject(f"job {uuid.uuid4().hex}", job)}
        tables = current_pool().map(_score_part, missing, shared)
        for part, table in zip(missing, tables, strict=True):
            with replacing(directory / part.output) as beside:
                parquet.write_table(table, beside, compression="zstd")
            bar.update(len(table))
    return Summary(*_count(directory, parts), len(parts), len(missing))


def _load(file: Path, network: Any, weights: Any, transform: Any) -> tuple[Detector[Any, Any], LoadedNetwork]:
    if isinstance(network, nn.Module):
        if not callable(transform):
            raise SettingError("transform", transform, "a function of a PIL image, as network is a module")
        # The caller's stays on its device.
        network = LoadedNetwork(copy.deepcopy(network), transform, "", described(transform))
    return load_fitted(file, {"network": network, "weights": weights, "transform": transform})


# The sources, divided into parts.


def _list_files(sources: Sequence[str]) -> list[_File]:
    """Return the sources' files, each once."""
    from pyarrow import fs

    files: dict[str, _File] = {}
    for source in sources:
        try:
            system, path, name = _resolve(source)
            info = system.get_file_info(path)
            selected = fs.FileSelector(path, recursive=True) if info.type == fs.FileType.Directory else [path]
            infos = system.get_file_info(selected)
        except (OSError, ValueError, ImportError) as error:  # pyarrow's errors are among them
            raise SettingError("sources", source, f"{_ALLOWED} ({type(error).__name__}: {error})") from error
        found = {
            name + one.path[len(path) :]: one
            for one in sorted(infos, key=lambda one: str(one.path))
            if one.type == fs.FileType.File
            and _kind(one.path)
            and not any(part.startswith((".", "_")) for part in one.path[len(path) :].split("/"))
        }
        if not found:
            raise SettingError("sources", source, f"{_ALLOWED}; there are none")
        for name, one in found.items():
            state = f"{one.size} {one.mtime_ns}"
            files[name] = _File(system, one.path, name, _kind(one.path), state)
    if not files:
        raise SettingError("sources", list(sources), _ALLOWED)
    return list(files.values())


def _resolve(source: str) -> tuple[Any, str, str]:
    """Return a source's file system, its path there, and its name in the output."""
    import pyarrow as pa
    from pyarrow import fs

    if not (scheme := _URL.match(source)):
        path = os.path.abspath(os.path.expanduser(source))
        return fs.LocalFileSystem(), path, source.rstrip("/") or source
    try:
        system, path = fs.FileSystem.from_uri(source)
    except pa.ArrowInvalid:
        system, path = fs.FileSystem.from_uri(f"fsspec+{source}")
    path = path.rstrip("/")
    return system, path, path if _URL.match(path) else scheme[0] + path  # without keys of the URL


def _kind(path: str) -> str:
    name = path.lower()
    if name.endswith(_PARQUET):
        return "parquet"
    if name.endswith(_TAR):
        return "tar"
    return "image" if os.path.splitext(name)[1] in extensions() else ""


def _open_parquet(file: _File) -> Any:
    from pyarrow import parquet

    # Buffered, as a whole column of a row group would be read otherwise.
    return parquet.ParquetFile(file.path, filesystem=file.system, buffer_size=_BUFFER, pre_buffer=False)


def _row_groups(columns: tuple[str, str | None], file: _File) -> list[int]:
    """Return the numbers of rows of a Parquet file's row groups (one row for another file)."""
    import pyarrow as pa
    from pyarrow import types

    if file.kind != "parquet":
        return [1]
    try:
        with _open_parquet(file) as opened:
            schema, metadata = opened.schema_arrow, opened.metadata
    except (OSError, pa.ArrowException) as error:
        raise ImageError(file.name, f"is no Parquet file that can be read ({error})") from error
    for setting, column in zip(("image_column", "path_column"), columns, strict=True):
        if column is not None and column not in schema.names:
            raise SettingError(setting, column, f"a column of {file.name}: {', '.join(schema.names)}")
    kind = schema.field(columns[0]).type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (types.is_binary(kind) or types.is_large_binary(kind)):
        raise SettingError("image_column", columns[0], f"bytes; in {file.name} it is {kind}")
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _divide(files: Sequence[_File], row_groups: Sequence[Sequence[int]]) -> Iterator[_Part]:
    """Yield parts: rows of a Parquet file, a shard, or several image files."""
    least, most = PART_IMAGES
    wanted = min(most, max(least, sum(map(sum, row_groups)) // _PARTS))
    numbers = itertools.count()
    for kind, group in itertools.groupby(zip(files, row_groups, strict=True), lambda pair: pair[0].kind):
        if kind == "image":
            images = [file for file, _ in group]
            for start in range(0, len(images), wanted):
                yield _Part(next(numbers), tuple(images[start : start + wanted]), 0, 0)
            continue
        for file, rows in group:
            size = max(wanted, -(-max(rows, default=0) // _SPLITS))
            for start in range(0, sum(rows), size):
                yield _Part(next(numbers), (file,), start, min(start + size, sum(rows)))


# The output directory.


def _start_output(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Create the output directory with its manifest, or compare the manifest that is there."""
    file = directory / MANIFEST
    try:
        directory.mkdir(parents=True, exist_ok=True)
        before = dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
        empty = not any(directory.iterdir())
        if empty:
            with replacing(file) as beside:
                beside.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    except (OSError, ValueError, TypeError) as error:
        raise SettingError("output", str(directory), f"a directory that can be written ({error})") from error
    if empty:
        return
    if before is None:
        raise SettingError("output", str(directory), "a new or empty directory, or one of the same call")
    for name, value in manifest.items():
        if before.get(name) != value:
            allowed = f"a new directory; this one holds scores for {name} {before.get(name)!r} rather than {value!r}"
            raise SettingError("output", str(directory), allowed)


def _count(directory: Path, parts: Iterable[_Part]) -> tuple[int, int, int]:
    """Return the numbers of images, OOD images and errors in the files of parts."""
    import pyarrow as pa
    from pyarrow import dataset

    files = [str(directory / part.output) for part in parts]
    try:
        rows = dataset.dataset(files, pa.schema(list(_COLUMNS.items())), "parquet")
        ood, errors = dataset.field("ood"), dataset.field("error").is_valid()
        return rows.count_rows(), rows.count_rows(filter=ood), rows.count_rows(filter=errors)
    except (OSError, pa.ArrowException) as error:
        raise ResultError(
            f"{directory}: a part is damaged ({error}); delete it, and the next call scores its images"
        ) from error


# In the workers.


def _score_part(shared: Mapping[str, Any], part: _Part) -> Any:
    """Return a part's rows as a pyarrow table."""
    import pyarrow as pa

    job: _Job = shared["job"]
    device = chosen_device(job.device)
    job.detector.network.to(device)
    images, rows = _read(job, part), []
    decode = functools.partial(_decode, job.transform)
    batches: deque[Iterator[tuple[str, Tensor | str]]] = deque()
    with ThreadPoolExecutor(torch.get_num_threads()) as executor:
        while batch := list(itertools.islice(images, job.batch_size)):
            batches.append(executor.map(decode, batch))
            if device.type == "cpu" or len(batches) > 1:  # a GPU scores a batch while the next is decoded
                rows += _score(job, list(batches.popleft()))
        for decoded in batches:
            rows += _score(job, list(decoded))
    return pa.Table.from_pylist(rows, pa.schema(list(_COLUMNS.items())))


def _decode(transform: Callable[[Any], Tensor], image: tuple[str, bytes | str]) -> tuple[str, Tensor | str]:
    """Return the name of an image, and its tensor or the reason why there is none."""
    name, content = image
    if isinstance(content, str):
        return name, content
    try:
        return name, apply_transform(read_image(name, content), transform, name)
    except ImageError as error:
        return name, error.why


def _score(job: _Job, images: Sequence[tuple[str, Tensor | str]]) -> list[dict[str, Any]]:
    """Return the rows of a batch."""
    rows: list[dict[str, Any]] = [
        {"path": utf8_text(name), "error": utf8_text(image) if isinstance(image, str) else None}
        for name, image in images
    ]
    while places := [place for place, row in enumerate(rows) if row["error"] is None]:
        batch: list[Any] = [images[place][1] for place in places]
        if len(shapes := {tuple(image.shape) for image in batch}) > 1:
            raise SettingError(
                "transform", job.transform, f"one that gives images of one size, not of {shapes}"
            )
        try:
            predictions, scores = job.detector.predict(torch.stack(batch))
        except NotFiniteError as error:  # the other images are scored without these
            for row in error.rows:
                rows[places[row]]["error"] = f"{error.what}: NaN or infinity"
            continue
        for place, prediction, score in zip(places, predictions.tolist(), scores.tolist(), strict=True):
            name = job.classes[prediction] if prediction < len(job.classes) else ""
            ood = score < job.threshold
            rows[place] |= {"prediction": prediction, "class": utf8_text(name), "score": score, "ood": ood}
        break
    return rows


def _read(job: _Job, part: _Part) -> Iterator[tuple[str, bytes | str]]:
    """Yield the names of a part's images, and their bytes or the reason why there are none."""
    import pyarrow as pa

    for file in part.files:
        try:
            if file.kind == "parquet":
                yield from _read_parquet(job, file, part.start, part.stop)
            elif file.kind == "tar":
                yield from _read_tar(file)
            else:
                yield file.name, _read_file(file)
        except (OSError, pa.ArrowException, tarfile.TarError, EOFError) as error:
            raise ImageError(file.name, f"cannot be read ({type(error).__name__}: {error})") from error


def _read_parquet(job: _Job, file: _File, start: int, stop: int) -> Iterator[tuple[str, bytes]]:
    columns = [column for column in (job.image_column, job.path_column) if column is not None]
    with _open_parquet(file) as opened:
        first = 0
        for group in range(opened.metadata.num_row_groups):
            row, first = first, first + opened.metadata.row_group(group).num_rows
            if first <= start or row >= stop:
                continue
            for batch in opened.iter_batches(job.batch_size, [group], columns, use_threads=False):
                for place in range(max(0, start - row), min(len(batch), stop - row)):
                    image = batch[job.image_column][place].as_py()
                    name = f"{file.name}#{row + place}"
                    if job.path_column is not None:
                        name = str(batch[job.path_column][place].as_py())
                    yield name, (image.get("bytes") if isinstance(image, dict) else image) or b""
                row += len(batch)
                if row >= stop:
                    break


def _read_tar(file: _File) -> Iterator[tuple[str, bytes]]:
    with (
        file.system.open_input_stream(file.path, compression=None) as stream,
        tarfile.open(fileobj=stream, mode="r|*") as shard,
    ):
        for member in shard:
            name = os.path.basename(member.name)
            if member.isreg() and not name.startswith(".") and _kind(name) == "image":
                content = shard.extractfile(member)
                yield f"{file.name}/{member.name}", content.read() if content else b""
            vars(shard)["members"] = []  # it would keep all of them


def _read_file(file: _File) -> bytes | str:
    try:
        with file.system.open_input_stream(file.path, compression=None) as stream:
            content: bytes = stream.read()
            return content
    except (FileNotFoundError, PermissionError) as error:
        return error.strerror or str(error)

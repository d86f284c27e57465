"""Scores of many images in Parquet files, WebDataset shards or object storage, written as Parquet parts.

The images are divided into numbered parts that depend on the sources alone. A part is the unit of work, of repetition and of
output: a worker reads, decodes and scores it, and the calling process writes it to a file of its own. A rerun in the same
output directory scores the missing parts. Memory is bounded by a few batches per worker and a few parts of results.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import itertools
import json
import os
import re
import tarfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.files import apply_transform
from ..detectors.base import Detector
from ..detectors.registry import load_detector
from ..detectors.serialization import read_detector
from ..errors import ImageError, NotFiniteError, ResultError, SettingError
from ..features.loading import is_hidden
from ..features.modes import device_of
from ..io import replacing
from ..memory import keep_memory
from ..models.loading import DEFAULT
from ..parallel import LocalPool, SharedObject, current_pool, ray_workers

MANIFEST = "_manifest.json"  # readers of Parquet directories skip names that start with _
PART_IMAGES = (128, 8192)
"""Images in a part, at least and at most; a part of a WebDataset source is a shard."""
_PARTS = 256  # parts that a source is divided into, as far as the limits above allow
_SPLITS = 16  # parts that one row group is divided into at most, as each reads the images before its own, too
_BUFFER = 8 << 20  # bytes of a Parquet column that are read at a time
_PARQUET, _TAR = (".parquet", ".parq", ".pq"), (".tar", ".tar.gz", ".tgz")
_ALLOWED = (
    "Parquet files, WebDataset shards (.tar), images, directories of them, or URLs such as s3://bucket/path"
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


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


class _Slice(NamedTuple):
    """Consecutive images of one file."""

    source: int
    """Index of the file's file system."""
    path: str
    """Path in the file system."""
    name: str
    """Name in the output."""
    kind: str
    """``parquet``, ``tar`` or ``image``."""
    start: int = 0
    images: int = 1
    """Number of images (0 for all, for a shard)."""


class _Part(NamedTuple):
    number: int
    slices: tuple[_Slice, ...]

    @property
    def file(self) -> str:
        """Name of the file of its scores."""
        return f"part-{self.number:05}.parquet"

    def __str__(self) -> str:
        first, last = self.slices[0], self.slices[-1]
        rows = f" from row {first.start} on" if first.kind == "parquet" else ""
        return f"part {self.number}: {first.name}{rows}" + (f" to {last.name}" if last is not first else "")


@dataclass(frozen=True)
class _Job:
    """Everything that a worker needs beside a part."""

    detector: str
    network: Any
    weights: Any
    transform: Any
    tpr: float
    image_column: str
    path_column: str | None
    batch_size: int
    device: str | None
    key: str
    """Key of this call; a worker keeps the detector of the latest."""
    systems: tuple[Any, ...] = ()
    """pyarrow file systems of the sources."""
    remote: bool = False
    """True if the workers are processes of their own."""


class _Loaded(NamedTuple):
    detector: Detector[Any, Any]
    transform: Callable[[Any], Tensor]
    description: str
    classes: list[str]
    threshold: float


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
    workers: int | None = None,
    address: str | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> Summary:
    """Score the images of Parquet files, WebDataset shards or object storage, and write Parquet parts.

    ``output`` receives ``part-00000.parquet``, ``part-00001.parquet``, … with the columns path, prediction, class, score,
    ood and error, one row for each image in the order of the sources. An image that cannot be decoded has the reason in
    error and nulls in the other columns. The same call continues an interrupted one.

    For example ``score_dataset("optfs.safetensors", "s3://bucket/images", "scores", workers=8, address="auto")``.

    Args:
        detector_file: File that ``detector.save`` or ``openood-adascale fit`` has written, with validation scores.
        sources: Parquet files with encoded images as bytes (or Hugging Face's ``{bytes, path}``), WebDataset shards, image
            files, directories of them, or URLs of pyarrow (``s3://``, ``gs://``, ``hdfs://``) or of an installed fsspec.
        output: Directory; a new or empty one, or that of the same call.
        network: Network as in :func:`~openood_adascale.models.loading.load_network`, or a module (default: the
            one in the detector's file).
        weights: Weights for it, as there.
        transform: Transform, as there.
        image_column: Column of the images in Parquet files.
        path_column: Column of their names (default: file and row number, ``FILE#ROW``).
        tpr: True positive rate of ID validation images at the threshold, in (0, 1].
        batch_size: Images in a forward pass.
        workers: Ray workers (default: those of the surrounding :func:`~openood_adascale.parallel.ray_workers`, else none).
        address: ``local``, ``auto`` or ``HOST:PORT``; see :func:`~openood_adascale.parallel.ray_workers`.
        device: Device of the network (default: cuda if available, else cpu).
        progress: True or False shows or hides the progress bar (default: shown in a terminal).

    Raises:
        SettingError: A setting or source that cannot be used, or an output directory of other settings.
        DetectorFileError: The detector's file cannot be used with this network.
        NotFittedError: The detector's file has no validation scores.
        ImageError: A file that is damaged as a whole, or gone.
        ResultError: A damaged part in the output directory.
        PoolError: The workers cannot be started, for example because the cluster has no free CPUs.
        WorkerLostError: A part killed its worker three times; names its images.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise SettingError("sources", sources, "an installed pyarrow (pip install 'openood-adascale[ray]')")
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise SettingError("batch_size", batch_size, "a whole number from 1 on")
    file, directory = Path(detector_file).expanduser().absolute(), Path(output).expanduser()
    job = _Job(
        str(file),
        _absolute(network),
        _absolute(weights),
        _absolute(transform),
        tpr,
        image_column,
        path_column,
        batch_size,
        device,
        uuid.uuid4().hex,
    )
    description = _load_detector(job, "cpu").description
    listed = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    systems, parts, fingerprint = _plan([os.fspath(source) for source in listed], job)
    settings = {
        "format": 1,
        "detector": hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest(),
        "transform": description,
        "tpr": tpr,
        "image_column": image_column,
        "path_column": path_column,
        "sources": fingerprint,
    }
    _start_output(directory, settings)
    counts, missing = np.zeros(3, int), []
    for part in parts:
        if (place := directory / part.file).exists():
            counts += _count(_read_part(place))
        else:
            missing.append(part)
    if missing:
        total = _image_count(parts)
        bar = tqdm(total=total, initial=counts[0], desc="Score", unit="image", disable=is_hidden(progress))
        started = workers is not None or address is not None
        with (
            bar,
            ray_workers(workers, address or "local") if started else nullcontext(current_pool()) as pool,
        ):
            work = replace(job, systems=systems, remote=not isinstance(pool, LocalPool))
            shared = {"job": SharedObject(f"job {job.key}", work)}
            for part, table in zip(missing, pool.map(_score_part, missing, shared), strict=True):
                _write_part(directory / part.file, table)
                counts += _count(table)
                bar.update(len(table))
        _latest.clear()
    images, ood, errors = counts.tolist()
    return Summary(images, ood, errors, len(parts), len(missing))


def _absolute(spec: Any) -> Any:
    """Return ``FILE``, ``file.py:function`` or ``hf:FOLDER`` with an absolute path, as workers have another directory."""
    if not isinstance(spec, str | os.PathLike) or spec == DEFAULT:
        return spec
    text = os.fspath(spec)
    if os.path.exists(os.path.expanduser(text)):
        return os.path.abspath(os.path.expanduser(text))
    place, colon, name = text.rpartition(":")
    if os.path.isfile(os.path.expanduser(place)):
        return os.path.abspath(os.path.expanduser(place)) + colon + name
    if place == "hf" and os.path.isdir(os.path.expanduser(name)):
        return place + colon + os.path.abspath(os.path.expanduser(name))
    return spec


# The sources, divided into parts.


def _plan(sources: Sequence[str], job: _Job) -> tuple[tuple[Any, ...], list[_Part], str]:
    """Return the file systems of the sources, the parts, and a fingerprint of the files.

    Raises:
        SettingError: A source that cannot be used.
    """
    files: list[tuple[_Slice, str]] = []
    systems = []
    for number, source in enumerate(sources):
        system, found = _list_files(number, source)
        systems.append(system)
        files += found
    files = list({one.name: (one, state) for one, state in files}.values())
    if not files:
        raise SettingError("sources", list(sources), _ALLOWED)

    def groups(entry: tuple[_Slice, str]) -> list[int]:
        one = entry[0]
        if one.kind != "parquet":
            return [one.images]
        return _row_groups(systems[one.source], one, job)

    with ThreadPoolExecutor(16) as executor:
        sizes = list(executor.map(groups, files))
    total = sum(map(sum, sizes))
    least, most = PART_IMAGES
    wanted = min(most, max(least, total // _PARTS))
    slices = itertools.chain.from_iterable(
        _split(one, group, wanted) for (one, _), group in zip(files, sizes, strict=True)
    )
    digest = hashlib.blake2b(digest_size=16)
    for (one, state), group in zip(files, sizes, strict=True):
        digest.update(f"{one.name!r} {one.kind} {state} {group}\n".encode("utf-8", "surrogateescape"))
    return tuple(systems), list(_gathered(slices, wanted)), digest.hexdigest()


def _list_files(number: int, source: str) -> tuple[Any, list[tuple[_Slice, str]]]:
    """Return a source's file system, and its files by name with their size and time."""
    from pyarrow import fs

    try:
        system, path, prefix, base = _file_system(source)
        info = system.get_file_info(path)
        if info.type == fs.FileType.Directory:
            infos = system.get_file_info(fs.FileSelector(path, recursive=True))
        else:
            infos = [info] if info.type == fs.FileType.File else []
    except (OSError, ValueError, ImportError) as error:  # pyarrow's errors are among them
        raise SettingError("sources", source, f"{_ALLOWED} ({type(error).__name__}: {error})") from error
    found = []
    for one in sorted(infos, key=lambda one: one.path):
        inside = one.path[len(path) :].strip("/").split("/")
        if one.type != fs.FileType.File or any(name.startswith((".", "_")) for name in inside):
            continue
        if kind := _kind(one.path):
            count = 0 if kind == "tar" else 1
            name = prefix + (one.path if base is None else base + one.path[len(path) :])
            found.append((_Slice(number, one.path, name, kind, 0, count), f"{one.size} {one.mtime_ns}"))
    if not found:
        raise SettingError("sources", source, f"{_ALLOWED}; there are none")
    return system, found


def _file_system(source: str) -> tuple[Any, str, str, str | None]:
    """Return file system, path in it, prefix of names, and what names have instead of that path."""
    import pyarrow as pa
    from pyarrow import fs

    if not _URL.match(source):
        path = os.path.abspath(os.path.expanduser(source))
        return fs.LocalFileSystem(), path, "", source.rstrip("/") or source
    scheme = source.partition(":")[0]
    try:
        system, path = fs.FileSystem.from_uri(source)
    except pa.ArrowInvalid as error:
        try:
            fsspec: Any = importlib.import_module("fsspec")
        except ImportError:
            raise error from None
        found, path = fsspec.core.url_to_fs(source)
        system = fs.PyFileSystem(fs.FSSpecHandler(found))
    return system, path.rstrip("/"), "" if scheme == "file" else f"{scheme}://", None


def _kind(path: str) -> str:
    from ..data.decoding import extensions

    name = path.lower()
    if name.endswith(_PARQUET):
        return "parquet"
    if name.endswith(_TAR):
        return "tar"
    return "image" if os.path.splitext(name)[1] in extensions() else ""


def _row_groups(system: Any, one: _Slice, job: _Job) -> list[int]:
    """Return the numbers of rows of a Parquet file's row groups.

    Raises:
        SettingError: It has not the columns.
        ImageError: It is damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet, types

    try:
        with system.open_input_file(one.path) as file:
            opened = parquet.ParquetFile(file)
            schema, metadata = opened.schema_arrow, opened.metadata
    except (OSError, pa.ArrowException) as error:
        raise ImageError(one.name, f"is no Parquet file that can be read ({error})") from error
    for setting, column in (("image_column", job.image_column), ("path_column", job.path_column)):
        if column is not None and column not in schema.names:
            raise SettingError(setting, column, f"a column of {one.name}: {', '.join(schema.names)}")
    kind = schema.field(job.image_column).type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (types.is_binary(kind) or types.is_large_binary(kind)):
        raise SettingError("image_column", job.image_column, f"bytes; in {one.name} it is {kind}")
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _split(one: _Slice, groups: Sequence[int], wanted: int) -> Iterator[_Slice]:
    """Yield a file's row groups, large ones in pieces of about ``wanted`` rows."""
    if one.kind != "parquet":
        yield one
        return
    start = 0
    for rows in groups:
        pieces = min(_SPLITS, max(1, round(rows / wanted)))
        size = -(-rows // pieces)
        for first in range(0, rows, max(1, size)):
            yield one._replace(start=start + first, images=min(size, rows - first))
        start += rows


def _gathered(slices: Iterable[_Slice], wanted: int) -> Iterator[_Part]:
    """Yield parts of consecutive slices, each of ``wanted`` images or a little more; a shard is a part of its own."""
    numbers = itertools.count()
    gathered: list[_Slice] = []
    count = 0
    for one in slices:
        if gathered and (count + one.images > wanted or one.kind == "tar"):
            yield _Part(next(numbers), tuple(gathered))
            gathered, count = [], 0
        gathered.append(one)
        count += one.images
        if one.kind == "tar":
            count = wanted
    if gathered:
        yield _Part(next(numbers), tuple(gathered))


def _image_count(parts: Iterable[_Part]) -> int | None:
    counts = [one.images for part in parts for one in part.slices]
    return sum(counts) if all(counts) else None


# The output directory.


def _start_output(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Create the output directory with its manifest, or compare the manifest that is there.

    Raises:
        SettingError: The directory holds something else, or parts of other settings.
    """
    file = directory / MANIFEST
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            if any(directory.iterdir()):
                raise SettingError(
                    "output", str(directory), "a new or empty directory, or one of the same call"
                )
            with replacing(file) as beside:
                beside.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            return
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError("output", str(directory), f"a directory that can be written ({error})") from error
    for name, value in manifest.items():
        if not isinstance(before, dict) or before.get(name) != value:
            was = before.get(name) if isinstance(before, dict) else before
            allowed = f"a new directory; this one holds scores for {name} {was!r} rather than {value!r}"
            raise SettingError("output", str(directory), allowed)


def _write_part(file: Path, table: Any) -> None:
    from pyarrow import parquet

    with replacing(file) as beside:
        parquet.write_table(table, beside, compression="zstd")


def _read_part(file: Path) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(file) as opened:
            return opened.read(["ood", "error"])
    except (OSError, ArrowException) as error:
        raise ResultError(
            f"{file}: damaged ({error}); delete it, and the next call scores its images"
        ) from error


def _count(table: Any) -> np.ndarray:
    """Return the numbers of images, OOD images and errors of a part."""
    from pyarrow import compute

    return np.array(
        [len(table), compute.sum(table["ood"]).as_py() or 0, len(table) - table["error"].null_count]
    )


# In the workers.

_latest: dict[str, _Loaded] = {}


def _load_detector(job: _Job, device: str) -> _Loaded:
    """Return detector, transform and class names for a job."""
    from ..models.loading import load_network
    from .scoring import _network_of

    notes = read_detector(job.detector).notes
    if isinstance(job.network, nn.Module):
        if not callable(job.transform):
            raise SettingError(
                "transform", job.transform, "a function of a PIL image, as network is a module"
            )
        network, transform, description, classes = job.network, job.transform, repr(job.transform), []
        if device_of(network) != torch.device(device):  # the caller's stays in its place
            network = copy.deepcopy(network)
    else:
        given = {"network": job.network, "weights": job.weights, "transform": job.transform}
        chosen = _network_of(job.detector, notes, given)
        found = load_network(chosen["network"], chosen["weights"], chosen["transform"])
        network, transform, description = found.network, found.transform, found.description
        classes = list(found.classes)
    named = notes.get("classes")
    detector = load_detector(job.detector, network.to(device))
    description = re.sub(r" at 0x\w+", "", description)
    return _Loaded(
        detector,
        transform,
        description,
        list(map(str, named if isinstance(named, list) and named else classes)),
        detector.threshold(job.tpr),
    )


def _decode(content: bytes, name: str) -> Any:
    """Return a PIL image in RGB; see :func:`~openood_adascale.data.decoding.read_image`.

    Raises:
        ImageError: It is no image, damaged, truncated, or larger than Pillow allows.
    """
    from ..data import decoding

    module = decoding.pillow()
    try:
        with (
            decoding._no_truncated_images(),
            module.open(io.BytesIO(content), formats=decoding.formats()) as image,
        ):
            image.load()
            return decoding._in_rgb(module, image)
    except Exception as error:  # Pillow's decoders raise anything for damaged files
        raise ImageError(name, decoding._reason(module, error)) from error


class _Row(NamedTuple):
    """A row of the output, with the image before it is scored."""

    name: str
    content: bytes | None
    error: str | None = None


def _score_part(shared: Mapping[str, Any], part: _Part) -> Any:
    """Return a part's rows as a pyarrow table."""
    import pyarrow as pa

    job: _Job = shared["job"]
    device = job.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if job.key not in _latest:
        _latest.clear()
        if job.remote:
            keep_memory()
        _latest[job.key] = _load_detector(job, device)
    loaded = _latest[job.key]
    columns: dict[str, list[Any]] = {
        name: [] for name in ("path", "prediction", "class", "score", "ood", "error")
    }
    threads = torch.get_num_threads()
    rows = itertools.chain.from_iterable(_read_slice(job, one) for one in part.slices)
    with ThreadPoolExecutor(threads) as executor:
        for batch in _decoded(rows, job.batch_size, loaded.transform, executor, int(device != "cpu")):
            _score_batch(loaded, batch, columns)
    types = dict(zip(columns, ("string", "int64", "string", "float64", "bool", "string"), strict=True))
    return pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})


def _decoded(
    rows: Iterable[_Row],
    batch_size: int,
    transform: Callable[[Any], Tensor],
    executor: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[list[tuple[str, Tensor | str]]]:
    """Yield batches of names with a tensor or an error text each; ``ahead`` more are decoded meanwhile."""

    def image(row: _Row) -> tuple[str, Tensor | str]:
        if row.error is not None or not row.content:
            return row.name, row.error or "is empty"
        try:
            return row.name, apply_transform(_decode(row.content, row.name), transform, row.name)
        except ImageError as error:
            return row.name, error.why

    waiting: deque[list[Future[tuple[str, Tensor | str]]]] = deque()
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, batch_size)):
        waiting.append([executor.submit(image, row) for row in batch])
        if len(waiting) > ahead:
            yield [future.result() for future in waiting.popleft()]
    for futures in waiting:
        yield [future.result() for future in futures]


def _score_batch(
    loaded: _Loaded, batch: Sequence[tuple[str, Tensor | str]], columns: Mapping[str, list[Any]]
) -> None:
    """Append a batch's rows to the columns."""
    results: dict[int, tuple[Any, ...]] = {
        place: (None, None, None, None, error)
        for place, (_, error) in enumerate(batch)
        if isinstance(error, str)
    }
    places = [place for place in range(len(batch)) if place not in results]
    while places:
        images = torch.stack(
            [image for image in (batch[place][1] for place in places) if isinstance(image, Tensor)]
        )
        try:
            predictions, scores = loaded.detector.predict(images)
        except NotFiniteError as error:  # the other images are scored without these
            for row in error.rows:
                results[places[row]] = (None, None, None, None, f"{error.what}: NaN or infinity")
            places = [place for place in places if place not in results]
            continue
        split = loaded.detector.extractor.split
        named = split is None or len(split.head.weight) == len(loaded.classes)
        for place, prediction, score in zip(places, predictions.tolist(), scores.tolist(), strict=True):
            name = loaded.classes[prediction] if named and prediction < len(loaded.classes) else ""
            results[place] = (prediction, name, score, score < loaded.threshold, None)
        break
    for place, (name, _) in enumerate(batch):
        for column, value in zip(columns.values(), (name, *results[place]), strict=True):
            column.append(value.encode("utf-8", "backslashreplace") if isinstance(value, str) else value)


def _read_slice(job: _Job, one: _Slice) -> Iterator[_Row]:
    """Yield a slice's images, undecoded.

    Raises:
        ImageError: The file is damaged as a whole, or gone.
    """
    import pyarrow as pa

    system = job.systems[one.source]
    try:
        if one.kind == "parquet":
            yield from _read_parquet(job, system, one)
        elif one.kind == "tar":
            yield from _read_tar(system, one)
        else:
            yield _read_file(system, one)
    except (OSError, pa.ArrowException, tarfile.TarError, EOFError) as error:
        raise ImageError(one.name, f"cannot be read ({type(error).__name__}: {error})") from error


def _read_parquet(job: _Job, system: Any, one: _Slice) -> Iterator[_Row]:
    from pyarrow import parquet

    stop = one.start + one.images
    columns = [job.image_column, *([job.path_column] if job.path_column else [])]
    with system.open_input_file(one.path) as file:
        # Buffered, as a whole column of a row group would be read otherwise.
        opened = parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        groups, position, first = [], 0, None
        for group in range(opened.metadata.num_row_groups):
            rows = opened.metadata.row_group(group).num_rows
            if position < stop and position + rows > one.start:
                groups.append(group)
                first = position if first is None else first
            position += rows
        position = first or 0
        for batch in opened.iter_batches(
            job.batch_size, row_groups=groups, columns=columns, use_threads=False
        ):
            low, high = max(0, one.start - position), min(len(batch), stop - position)
            if low < high:
                images = batch.column(batch.schema.get_field_index(job.image_column)).slice(low, high - low)
                names: Iterable[Any] = (f"{one.name}#{position + row}" for row in range(low, high))
                if job.path_column:
                    names = batch.column(batch.schema.get_field_index(job.path_column)).slice(low, high - low)
                for name, image in zip(names, images, strict=True):
                    content = image.as_py()
                    content = content.get("bytes") if isinstance(content, dict) else content
                    yield _Row(name if isinstance(name, str) else str(name.as_py()), content)
            position += len(batch)
            if position >= stop:
                return


def _read_tar(system: Any, one: _Slice) -> Iterator[_Row]:
    with (
        system.open_input_stream(one.path, compression=None) as file,
        tarfile.open(fileobj=file, mode="r|*") as shard,
    ):
        for member in shard:
            name = os.path.basename(member.name)
            if member.isreg() and not name.startswith(".") and _kind(name) == "image":
                content = shard.extractfile(member)
                yield _Row(f"{one.name}/{member.name}", content.read() if content else None)
            vars(shard)["members"] = []  # it would keep all of them


def _read_file(system: Any, one: _Slice) -> _Row:
    try:
        with system.open_input_stream(one.path, compression=None) as file:
            return _Row(one.name, file.read())
    except (FileNotFoundError, PermissionError) as error:
        return _Row(one.name, None, error.strerror or str(error))

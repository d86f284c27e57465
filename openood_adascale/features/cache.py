"""The feature cache: features of a dataset's images under one network, in a directory that the user names.

An entry is a directory per network, dataset and inference settings. It holds safetensors shards of :data:`SHARD` images,
written beside their place and renamed, with a checksum. Reading executes nothing. A damaged or missing shard is made
again. Keys are described in :mod:`~.fingerprint`; inputs without a comparable representation, and random images, are not
cached.
"""

from __future__ import annotations

import contextvars
import datetime
import hashlib
import json
import os
import shutil
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import CacheError
from ..io import replacing
from .extractor import FeatureExtractor, Features, InferenceSettings, fastest_precision
from .fingerprint import NotFingerprintableError, dataset_key, network_key
from .head import LinearHead
from .indexed import (
    IndexedLoader,
    IndexedPass,
    PassInfo,
    digest_of_images,
    library_versions,
    loader_batches,
    run_pass,
)
from .loading import is_hidden
from .modes import WeightsVersion, device_of, random_state, restored_random_state, seed_everything, unwrap
from .statistics import Perturbation

VARIABLE = "OPENOOD_ADASCALE_CACHE_DIR"
FORMAT = 3
MARKER = "openood_adascale_cache.json"
SHARD = 1024
"""Images in a shard; the last one of an entry has fewer."""
PLAIN = "features"
"""Name of the part with a, z, predictions and labels."""
Shard = dict[str, Tensor]
CacheDir = str | os.PathLike[str] | bool | None
_ABANDONED = 24 * 3600  # seconds after which a temporary file is a killed run's

_chosen: contextvars.ContextVar[FeatureCache | None] = contextvars.ContextVar("feature_cache")


def current_cache() -> FeatureCache | None:
    """Return the feature cache in use (None if there is none).

    Raises:
        CacheError: ``OPENOOD_ADASCALE_CACHE_DIR`` names a directory that cannot be used.
    """
    try:
        return _chosen.get()
    except LookupError:
        directory = os.environ.get(VARIABLE, "").strip()
        return FeatureCache(directory) if directory else None


@contextmanager
def feature_cache(
    cache_dir: CacheDir | FeatureCache = None, cache_tag: str | None = None
) -> Iterator[FeatureCache | None]:
    """Use a feature cache for all passes over images inside the ``with`` block.

    >>> with feature_cache("features"):
    ...     first = AdaSCALE(network).fit(val_loader).predict_loader(test_loader)
    ...     again = MSP(network).predict_loader(test_loader)          # no forward pass

    Datasets and weights are fingerprinted once within the block; weights again if they are written to.

    Args:
        cache_dir: Directory, or an opened cache with the fingerprints that it has computed (default: the cache in use,
            else ``OPENOOD_ADASCALE_CACHE_DIR``); False for no cache.
        cache_tag: Text that stands in for transforms, datasets and classes without a comparable representation; change it
            whenever these change.

    Raises:
        CacheError: The directory cannot be used as a cache.
    """
    if cache_dir is None or cache_dir is True:
        cache = current_cache()
        if cache is not None:
            cache = FeatureCache(cache.directory, cache_tag or cache.tag)
    elif isinstance(cache_dir, FeatureCache):
        cache = cache_dir
    else:
        cache = FeatureCache(cache_dir, cache_tag) if cache_dir is not False else None
    token = _chosen.set(cache)
    try:
        yield cache
    finally:
        _chosen.reset(token)


def cached_features(
    extractor: FeatureExtractor,
    loader: Any,
    perturbations: Sequence[Perturbation],
    inference: InferenceSettings,
    progress: bool | None,
    description: str,
) -> Iterator[tuple[Features, np.ndarray]] | None:
    """Return features and labels of each of the loader's batches from the cache in use.

    Returns:
        None without a cache, or for inputs that are not cached.

    Raises:
        CacheError: The cache cannot be read or written.
    """
    cache = current_cache()
    entry = None if cache is None else cache.entry(extractor, loader, inference)
    if entry is None or not entry.fill(perturbations, progress, description):
        return None
    return (entry.features(batch, perturbations) for batch in loader_batches(loader))


V = TypeVar("V")


class _ByIdentity(Generic[V]):
    """Values by the identity of objects as long as these live, and by the type of objects without weak references."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[Any, V]] = {}

    def get(self, thing: Any) -> V | None:
        found = self._values.get(id(thing)) or self._values.get(id(type(thing)))
        return None if found is None else found[1]

    def set(self, thing: Any, value: V) -> None:
        key = id(thing)
        try:
            self._values[key] = (weakref.ref(thing, lambda _: self._values.pop(key, None)), value)
        except TypeError:
            self._values[id(type(thing))] = (type(thing), value)


class FeatureCache:
    """A directory of cached features.

    Args:
        directory: A feature cache, or an empty or new directory, which becomes one.
        tag: See :func:`feature_cache`.

    Raises:
        CacheError: The directory is not a cache, not empty, or another version's; it is left untouched.
    """

    def __init__(self, directory: str | os.PathLike[str], tag: str | None = None) -> None:
        if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
            raise CacheError(
                f"cache_dir: {directory!r} is not allowed; expected a directory, or False for none"
            )
        self.directory = Path(directory).expanduser().absolute()
        self.tag = tag
        self._networks: _ByIdentity[tuple[WeightsVersion, str]] = _ByIdentity()
        self._loaders: _ByIdentity[str] = _ByIdentity()
        self._refused: _ByIdentity[bool] = _ByIdentity()
        _open(self.directory, create=True)

    def entry(
        self, extractor: FeatureExtractor, loader: Any, inference: InferenceSettings
    ) -> CacheEntry | None:
        """Return the entry of a loader's images under a network (None, after one warning, if they are not cached)."""
        source = IndexedLoader.of(loader)
        try:
            if source is None or not hasattr(source.dataset, "__len__"):
                name = type(loader if source is None else source.dataset).__name__
                raise NotFingerprintableError(f"a {name} does not index a dataset", tag_helps=False)
            if len(source.dataset) == 0 or self._refused.get(source.dataset):
                return None
            parts = self._key(extractor, loader, inference)
        except NotFingerprintableError as error:
            self._refuse(loader, error)
            return None
        key = hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
        return CacheEntry(self, self.directory / "entries" / key, extractor, source, inference)

    def _key(self, extractor: FeatureExtractor, loader: Any, inference: InferenceSettings) -> list[str]:
        network = unwrap(extractor.network)
        known = self._networks.get(network)
        if known is None or not known[0].holds(network):
            known = WeightsVersion(network), network_key(network, self.tag)
            self._networks.set(network, known)
        images = self._loaders.get(loader)
        if images is None:
            images = dataset_key(loader, self.tag)
            self._loaders.set(loader, images)
        device = device_of(network)
        precision = inference.precision
        return [
            str(FORMAT),
            known[1],
            images,
            fastest_precision(device) if precision == "auto" else precision,
            inference.memory_format,
            device.type,
            library_versions(),
            "" if self.tag is None else f"tag {self.tag}",
        ]

    def _refuse(self, loader: Any, error: NotFingerprintableError) -> None:
        """Warn once per dataset that its images are not cached."""
        dataset = getattr(loader, "dataset", loader)
        if self._refused.get(dataset):
            return
        self._refused.set(dataset, True)
        hint = ". Pass cache_tag=TEXT to cache them all the same, and another text whenever they change"
        warnings.warn(
            f"cache: the images of {type(dataset).__name__} are not cached: {error}{hint if error.tag_helps else ''}",
            UserWarning,
            stacklevel=2,
        )

    def entries(self) -> list[CacheEntry]:
        """Return all entries, without network and loader, to be listed or removed."""
        folders = sorted((self.directory / "entries").glob("*"))
        return [
            CacheEntry(self, folder, None, None, None)
            for folder in folders
            if folder.is_dir() and not folder.is_symlink()
        ]


def open_cache(directory: str | os.PathLike[str]) -> FeatureCache:
    """Return an existing feature cache.

    Raises:
        CacheError: There is none, or it is another version's.
    """
    _open(Path(directory).expanduser().absolute(), create=False)
    return FeatureCache(directory)


class CacheEntry:
    """Cached features of one dataset under one network.

    Args:
        cache: The cache.
        folder: Directory of the entry.
        extractor: Feature extractor of the network.
        source: The dataset.
        inference: Inference settings.
    """

    def __init__(
        self,
        cache: FeatureCache,
        folder: Path,
        extractor: FeatureExtractor | None,
        source: IndexedLoader | None,
        inference: InferenceSettings | None,
    ) -> None:
        self.folder = folder
        self._cache = cache
        self._work: Any = (extractor, source, inference)
        self._head: LinearHead | None = None

    @property
    def about(self) -> dict[str, Any]:
        """Description of the entry (empty before it is complete)."""
        try:
            found = json.loads(_read_text(self.folder / "about.json"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) and all(type(found.get(k)) is int for k in ("D", "N")) else {}

    def fill(
        self, perturbations: Sequence[Perturbation], progress: bool | None = None, description: str = ""
    ) -> bool:
        """Extract and add whatever is missing.

        Returns:
            False, after one warning, if the images turn out not to be cacheable.

        Raises:
            CacheError: A file cannot be written, or the disk is full; shards written before are kept.
            NotFiniteError: NaN or infinity; names the images by their place in the dataset and, if known, file.
        """
        _, source, _ = self._work
        count = len(source.dataset)
        parts: dict[str, Perturbation | None] = {PLAIN: None, **{part_name(p): p for p in perturbations}}
        begun = bool(self.about) and self._load_head() is not None
        missing: dict[int, tuple[str, ...]] = {}
        for number in range(-(-count // SHARD)):
            rows = len(self._rows(number))
            lacks = tuple(part for part in parts if not (begun and self._is_whole(part, number, rows)))
            if lacks:
                missing[number] = lacks
        if not missing:
            return True
        self._remove_abandoned()
        total = sum(len(self._rows(number)) for number in missing)
        try:
            with tqdm(total=total, desc=description, unit="image", disable=is_hidden(progress)) as bar:
                for lacks in dict.fromkeys(missing.values()):
                    numbers = [number for number, others in missing.items() if others == lacks]
                    wanted = tuple(p for part, p in parts.items() if p is not None and part in lacks)
                    self._extract(numbers, wanted, lacks, not begun, bar.update)
                    begun = True
        except NotFingerprintableError as error:
            self._cache._refuse(source, error)
            return False
        return True

    def _extract(
        self,
        numbers: list[int],
        perturbations: tuple[Perturbation, ...],
        lacks: tuple[str, ...],
        first: bool,
        advance: Callable[[int], Any],
    ) -> None:
        """Run the network over the images of some shards and write the missing parts."""
        extractor, source, inference = self._work
        indices = [index for number in numbers for index in self._rows(number)]
        size = source.batch_size
        batches = tuple(tuple(indices[start : start + size]) for start in range(0, len(indices), size))
        checked = indices[:2] if first and self._cache.tag is None else []
        work = IndexedPass(
            batches, perturbations, inference, PLAIN in lacks, min(len(checked), len(batches[0]))
        )
        waiting: list[dict[str, Shard]] = []
        left = iter(numbers)
        number: int | None = next(left)
        reduce = _ToShards(lacks, perturbations)
        for info, shards in run_pass(extractor, source, work, reduce):
            if first:
                self._begin(info, checked[: work.digested])
                first = False
            waiting.append(shards)
            advance(_length(shards))
            while number is not None and sum(map(_length, waiting)) >= (rows := len(self._rows(number))):
                joined = _join(waiting)
                waiting = [{part: _cut(shard, rows, None) for part, shard in joined.items()}]
                for part, shard in joined.items():
                    self._write(f"{part}-{number:06d}", _cut(shard, 0, rows))
                number = next(left, None)

    def _begin(self, info: PassInfo, checked: list[int]) -> None:
        """Write head and description, unless network or images turn out to be random.

        Raises:
            NotFingerprintableError: They are.
        """
        extractor, source, _ = self._work
        if info.uncacheable or info.head is None:
            raise NotFingerprintableError(info.uncacheable, tag_helps=False)
        if checked:
            with restored_random_state():
                seed_everything(1 + checked[0])
                before = random_state()
                again = source.read(checked)
                drawn = random_state() != before
            if drawn or digest_of_images(again) != info.images_digest:
                raise NotFingerprintableError("its images are random: reading one twice gives two")
        self._head = info.head
        self._write("head", {"weight": info.head.weight, "bias": info.head.bias})
        about = {
            "N": len(source.dataset),
            "D": info.size,
            "C": len(info.head.bias),
            "network": type(unwrap(extractor.network)).__name__,
            "dataset": type(source.dataset).__name__,
            "root": str(getattr(source.dataset, "root", getattr(source.dataset, "data_dir", ""))),
            "created": datetime.datetime.now().isoformat(" ", "seconds"),
        }
        _write_bytes(self.folder / "about.json", json.dumps(about, indent=1).encode())

    def features(
        self, indices: Sequence[int], perturbations: Sequence[Perturbation] = ()
    ) -> tuple[Features, np.ndarray]:
        """Return features, on the network's device, and labels of images that are in the cache."""
        extractor, _, _ = self._work
        device = device_of(unwrap(extractor.network))
        rows = torch.as_tensor(indices)
        plain = self._gather(PLAIN, rows)
        head = self._load_head()
        if head is None:
            raise CacheError(f"cache: {self.folder} was removed while it was in use; run again")
        perturbed = {p: self._gather(part_name(p), rows)["activation"].to(device) for p in perturbations}
        return (
            Features(
                plain["logits"].to(device),
                plain["prediction"].to(device),
                plain["activation"].to(device),
                perturbed,
                head.to(device),
            ),
            plain["label"].numpy(),
        )

    def _load_head(self) -> LinearHead | None:
        if self._head is None and self._is_whole("head", None, None):
            tensors = self._read("head")
            self._head = LinearHead(tensors["weight"], tensors["bias"])
        return self._head

    def _gather(self, part: str, rows: Tensor) -> Shard:
        shards = rows // SHARD
        numbers = shards.unique().tolist()
        first = self._read(f"{part}-{numbers[0]:06d}")
        if len(numbers) == 1:
            return {name: tensor[rows - SHARD * numbers[0]] for name, tensor in first.items()}
        found = {name: tensor.new_empty(len(rows), *tensor.shape[1:]) for name, tensor in first.items()}
        for number in numbers:
            here = shards == number
            for name, tensor in self._read(f"{part}-{number:06d}").items():
                found[name][here] = tensor[rows[here] - SHARD * number]
        return found

    def _rows(self, number: int) -> range:
        return range(number * SHARD, min((number + 1) * SHARD, len(self._work[1].dataset)))

    # Files.

    def _is_whole(self, part: str, number: int | None, rows: int | None) -> bool:
        name = part if number is None else f"{part}-{number:06d}"
        path = self.folder / f"{name}.safetensors"
        try:
            if not path.is_file():  # reading a pipe would block
                return False
            state = path.stat()
        except OSError:
            return False
        return _is_intact(str(path), f"{self.folder.name} {name}", state.st_size, state.st_mtime_ns, rows)

    def _read(self, name: str) -> Shard:
        path = self.folder / f"{name}.safetensors"
        try:
            state = path.stat()
            return _mapped(str(path), state.st_size, state.st_mtime_ns)
        except (OSError, SafetensorError) as error:
            raise CacheError(f"cache: {path} cannot be read any more: {error}") from error

    def _write(self, name: str, shard: Mapping[str, Tensor]) -> None:
        tensors = {key: tensor.contiguous() for key, tensor in shard.items()}
        checksum = _checksum(tensors, f"{self.folder.name} {name}")
        _write_bytes(self.folder / f"{name}.safetensors", save(tensors, {"checksum": checksum}))

    def _remove_abandoned(self) -> None:
        """Remove temporary files that killed runs left behind."""
        for path in self.folder.glob(".*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self._files())

    def parts(self) -> dict[str, int]:
        """Return the number of images in each part, up to whole shards."""
        counts: dict[str, int] = {}
        for path in self._files():
            part, dash, _ = path.stem.rpartition("-")
            if dash and path.suffix == ".safetensors":
                counts[part] = counts.get(part, 0) + SHARD
        return counts

    def remove(self) -> None:
        """Remove the entry, and leave alone whatever else is in its directory.

        Raises:
            CacheError: A file cannot be removed.
        """
        try:
            for path in self._files():
                path.unlink(missing_ok=True)
        except OSError as error:
            raise CacheError(
                f"cache: {error.filename} cannot be removed: {error.strerror or error}"
            ) from error
        with suppress(OSError):
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        patterns = ("*.safetensors", ".*.tmp", "about.json")
        found = [path for pattern in patterns for path in self.folder.glob(pattern)]
        return [path for path in found if path.is_file()]


def part_name(perturbation: Perturbation) -> str:
    """Return the name of the shards of a perturbation's activations a_ε."""
    p = perturbation
    text = f"{p.pixels} {p.o!r} {p.epsilon!r} {p.seed}"
    return f"perturbed-{p.pixels}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def readable(size: float) -> str:
    """Return a number of bytes with its unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


@dataclass
class _ToShards:
    """Turns the features of a batch into rows of the shards of some parts."""

    parts: tuple[str, ...]
    perturbations: tuple[Perturbation, ...]

    def __call__(self, features: Features, labels: np.ndarray) -> dict[str, Shard]:
        found: dict[str, Shard] = {
            part_name(p): {"activation": features.perturbed[p].cpu()} for p in self.perturbations
        }
        if PLAIN in self.parts:
            found[PLAIN] = {
                "activation": features.activation.cpu(),
                "logits": features.logits.cpu(),
                "prediction": features.prediction.cpu(),
                "label": torch.from_numpy(labels.astype(np.int64)),
            }
        return {part: found[part] for part in self.parts}


def _length(parts: Mapping[str, Shard]) -> int:
    return len(next(iter(parts.values()))["activation"])


def _cut(shard: Shard, start: int, stop: int | None) -> Shard:
    return {name: tensor[start:stop] for name, tensor in shard.items()}


def _join(waiting: list[dict[str, Shard]]) -> dict[str, Shard]:
    return {
        part: {name: torch.cat([parts[part][name] for parts in waiting]) for name in shard}
        for part, shard in waiting[0].items()
    }


_FORMER = "openood_adascale_store.json"


def _open(directory: Path, create: bool) -> None:
    marker = directory / MARKER
    allowed = "expected a feature cache" + (", or an empty or new directory" if create else "")
    if not marker.exists():
        if (directory / _FORMER).exists():
            raise CacheError(
                f"cache_dir: {directory} is a store of an earlier version of this package; it is left as it is: choose "
                "another directory, and the features are extracted again"
            )
        if directory.exists() and not directory.is_dir():
            raise CacheError(f"cache_dir: {directory} is not a directory; {allowed}")
        occupied = directory.exists() and any(
            MARKER not in path.name and not path.name.endswith(".tmp") and path.name != "lost+found"
            for path in directory.iterdir()
        )
        if create and not occupied:
            _write_bytes(marker, json.dumps({"format": FORMAT}).encode())
        elif not marker.exists():  # else another process has just made it one
            state = "is not empty and not a feature cache" if directory.exists() else "does not exist"
            raise CacheError(f"cache_dir: {directory} {state}; {allowed}")
    try:
        found = json.loads(_read_text(marker))["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheError(f"cache_dir: {marker} cannot be read ({error}); {allowed}") from error
    if found != FORMAT:
        raise CacheError(
            f"cache_dir: {directory} has format {found!r} of another version of this package; expected {FORMAT}. It is "
            "left as it is: choose another directory"
        )


def _read_text(path: Path) -> str:
    if not path.is_file():  # reading a pipe would block
        raise OSError(f"{path} is not a file")
    return path.read_text(encoding="utf-8")


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            beside.write_bytes(content)
    except OSError as error:
        free = ""
        with suppress(OSError):
            free = f"; {readable(shutil.disk_usage(path.parent).free)} free there"
        raise CacheError(
            f"cache: {path} cannot be written: {error.strerror or error}{free}. Finished shards are kept, and a rerun "
            "continues from them"
        ) from error


def _checksum(tensors: Mapping[str, Tensor], place: str) -> str:
    digest = hashlib.blake2b(place.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@lru_cache(maxsize=65536)
def _is_intact(path: str, place: str, size: int, changed: int, rows: int | None) -> bool:
    """Compare a file with its checksum, once as long as it does not change."""
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get("checksum")
        tensors = _mapped(path, size, changed)
        whole = rows is None or all(len(tensor) == rows for tensor in tensors.values())
        return whole and said == _checksum(tensors, place)
    except (OSError, SafetensorError, ValueError, RuntimeError):
        return False


@lru_cache(maxsize=1024)
def _mapped(path: str, size: int, changed: int) -> Shard:
    """Return a file's tensors, mapped into memory, in its present state."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)

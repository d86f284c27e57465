"""The feature cache: features of a dataset's images under one network, in a directory that the user names.

An entry is a directory per network, dataset and inference settings. It holds safetensors files with a checksum, written
beside their place and renamed: the head, and for each part of the features shards of about :data:`SHARD` images. Reading
executes nothing. A damaged or missing file is made again. Keys are described in :mod:`~.fingerprint`.
"""

from __future__ import annotations

import contextvars
import datetime
import functools
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import PIL
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import CacheError
from ..io import replacing
from .extractor import FeatureExtractor, InferenceSettings, fastest_precision
from .files import read_tensors, write_tensors
from .fingerprint import NotFingerprintableError, dataset_key, hashed, network_key
from .head import LinearHead
from .indexed import IndexedLoader, PassInfo, run_pass
from .loading import is_hidden
from .network import WeightsVersion, device_of, random_state, restored_random_state, unwrap
from .statistics import Features, Perturbation

VARIABLE = "OPENOOD_ADASCALE_CACHE_DIR"
FORMAT = 5
MARKER = "openood_adascale_cache.json"
_KEY = "openood_adascale_cache"
SHARD = 1024
"""Images in a shard, rounded down to whole batches."""
Shard = dict[str, Tensor]
Part = Perturbation | None
"""The activations a_ε of a perturbation, or (None) a, z, predictions and labels."""
CacheDir = str | os.PathLike[str] | Literal[False] | None

_chosen: contextvars.ContextVar[FeatureCache | None] = contextvars.ContextVar("feature_cache")


def current_cache() -> FeatureCache | None:
    """Return the feature cache in use: of :func:`feature_cache`, else of ``OPENOOD_ADASCALE_CACHE_DIR`` (or None)."""
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
    cache = current_cache() if cache_dir is None else None
    if isinstance(cache_dir, FeatureCache):
        cache = cache_dir
    elif cache is not None:
        cache = FeatureCache(cache.directory, cache_tag or cache.tag)
    elif cache_dir is not None and cache_dir is not False:
        cache = FeatureCache(cache_dir, cache_tag)
    token = _chosen.set(cache)
    try:
        yield cache
    finally:
        _chosen.reset(token)


class FeatureCache:
    """A directory of cached features.

    Args:
        directory: A feature cache, or an empty or new directory, which becomes one.
        tag: See :func:`feature_cache`.
        create: Make a new or empty directory a cache.

    Raises:
        CacheError: The directory is not a cache, not empty, or another version's; it is left untouched.
    """

    def __init__(
        self, directory: str | os.PathLike[str], tag: str | None = None, create: bool = True
    ) -> None:
        if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
            raise CacheError(
                f"cache_dir: {directory!r} is not allowed; expected a directory, or False for none"
            )
        self.directory = Path(directory).expanduser().absolute()
        self.tag = tag
        self._networks: WeakKeyDictionary[nn.Module, tuple[WeightsVersion, str]] = WeakKeyDictionary()
        self._loaders: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._refused: set[str] = set()
        _open(self.directory, create)

    def entry(
        self, extractor: FeatureExtractor, loader: Any, inference: InferenceSettings
    ) -> CacheEntry | None:
        """Return the entry of a loader's images under a network (None, after one warning, if they are not cached)."""
        network, source = unwrap(extractor.network), IndexedLoader.of(loader)
        try:
            if source is None or loader not in self._loaders:
                self._loaders[loader] = dataset_key(loader, self.tag)
            known = self._networks.get(network)
            if known is None or not known[0].holds(network):
                known = self._networks[network] = WeightsVersion(network), network_key(network, self.tag)
        except NotFingerprintableError as error:
            self.refuse(loader, error)
            return None
        precision, device = inference.precision, device_of(network)
        parts = (
            f"{FORMAT} torch {torch.__version__} Pillow {PIL.__version__} tag {self.tag}",
            known[1],
            self._loaders[loader],
            fastest_precision(device) if precision == "auto" else precision,
            inference.memory_format,
            device.type,
        )
        key = hashed("\n".join(parts).encode())
        if source is None or len(source.dataset) == 0 or key in self._refused:
            return None
        return CacheEntry(self, self.directory / "entries" / key, extractor, source, inference)

    def refuse(self, loader: Any, error: NotFingerprintableError, key: str = "") -> None:
        """Warn that a loader's images are not cached, once for each reason, and remember the key of their entry."""
        kind = type(getattr(loader, "dataset", loader)).__name__
        text = f"cache: the images of {kind} are not cached: {error}"
        if error.tag_helps:
            text += ". Pass cache_tag=TEXT to cache them all the same, and another text whenever they change"
        if text not in self._refused:
            warnings.warn(text, stacklevel=2)
        self._refused |= {text, key}

    def entries(self) -> list[CacheEntry]:
        """Return all entries, without network and loader, to be listed or removed."""
        folders = sorted((self.directory / "entries").glob("*"))
        return [CacheEntry(self, folder) for folder in folders if folder.is_dir() and not folder.is_symlink()]


class CacheEntry:
    """Cached features of one dataset under one network.

    :attr:`about` describes it; it is empty before the first shard is written.
    """

    def __init__(
        self,
        cache: FeatureCache,
        folder: Path,
        extractor: Any = None,
        source: Any = None,
        inference: Any = None,
    ) -> None:
        self.folder = folder
        self._cache, self._extractor, self._source, self._inference = cache, extractor, source, inference
        tensors, self.about = _load(self.folder / "head.safetensors") or ({}, {})
        self._head: Any = LinearHead(**tensors) if tensors else None

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
        missing: dict[tuple[Part, ...], list[int]] = {}
        for number in range(-(-len(self._source.dataset) // self._shard)):
            is_new = self._head is None
            lacks = tuple(p for p in (None, *perturbations) if is_new or not self._is_whole(p, number))
            missing.setdefault(lacks, []).append(number)
        missing.pop((), None)
        if not missing:
            return True
        total = sum(len(self._rows(number)) for numbers in missing.values() for number in numbers)
        try:
            with tqdm(total=total, desc=description, unit="image", disable=is_hidden(progress)) as bar:
                for lacks, numbers in missing.items():
                    self._extract(numbers, lacks, bar)
        except NotFingerprintableError as error:
            self._cache.refuse(self._source, error, self.folder.name)
            return False
        return True

    @property
    def _shard(self) -> int:
        size = self._source.batch_size
        return int(self.about.get("shard", max(1, SHARD // size) * size))

    def _rows(self, number: int) -> range:
        return range(number * self._shard, min((number + 1) * self._shard, len(self._source.dataset)))

    def _extract(self, numbers: list[int], parts: tuple[Part, ...], bar: Any) -> None:
        """Run the network over the images of some shards and write these parts of them."""
        size = self._source.batch_size
        batches = {
            number: [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]
            for number, rows in ((number, self._rows(number)) for number in numbers)
        }
        every = [batch for several in batches.values() for batch in several]
        perturbations = [part for part in parts if part is not None]
        reduce = functools.partial(_rows_of, parts)
        results = run_pass(self._extractor, self._source, every, perturbations, self._inference, reduce)
        for number, several in batches.items():
            found = []
            for indices in several:
                info, rows = next(results)
                if self._head is None:
                    self._begin(info, indices)
                found.append(rows)
                bar.update(len(indices))
            for part in parts:
                shard = {name: torch.cat([rows[part][name] for rows in found]) for name in found[0][part]}
                _write(self._path(part, number), shard, {})

    def _begin(self, info: PassInfo, indices: Sequence[int]) -> None:
        """Write head and description, or raise NotFingerprintableError if network or images are random."""
        if info.uncacheable:
            raise NotFingerprintableError(info.uncacheable, tag_helps=False)
        dataset = self._source.dataset
        if self._cache.tag is None:
            with restored_random_state(seed=1 + indices[0]):
                before = random_state()
                again = self._source.read(indices[:2])
                if random_state() != before or not torch.equal(again, info.images):
                    raise NotFingerprintableError("its images are random: reading one twice gives two")
        about = {
            "N": len(dataset),
            "shard": self._shard,
            "network": type(unwrap(self._extractor.network)).__name__,
            "dataset": type(dataset).__name__,
            "root": str(getattr(dataset, "root", getattr(dataset, "data_dir", ""))),
            "created": datetime.datetime.now().isoformat(" ", "seconds"),
        }
        _write(self.folder / "head.safetensors", info.head._asdict(), about)
        self._head, self.about = info.head, about

    def features(
        self, indices: Sequence[int], perturbations: Sequence[Perturbation] = ()
    ) -> tuple[Features, np.ndarray]:
        """Return features, on the network's device, and labels of images that are in the cache."""
        device = device_of(unwrap(self._extractor.network))
        rows = torch.as_tensor(indices)
        plain = self._gather(None, rows)
        perturbed = {p: self._gather(p, rows)["activation"].to(device) for p in perturbations}
        labels = plain.pop("label").numpy()
        moved = {name: tensor.to(device) for name, tensor in plain.items()}
        return Features(**moved, perturbed=perturbed, head=self._head.to(device)), labels

    def _gather(self, part: Part, rows: Tensor) -> Shard:
        numbers = rows // self._shard
        found: Shard = {}
        for number in numbers.unique().tolist():
            here = numbers == number
            loaded = _load(self._path(part, number))
            if loaded is None:
                raise CacheError(f"cache: {self._path(part, number)} cannot be read any more; run again")
            for name, tensor in loaded[0].items():
                whole = found.setdefault(name, tensor.new_empty(len(rows), *tensor.shape[1:]))
                whole[here] = tensor[rows[here] - self._shard * number]
        return found

    def _is_whole(self, part: Part, number: int) -> bool:
        loaded = _load(self._path(part, number))
        rows = len(self._rows(number))
        return loaded is not None and all(len(tensor) == rows for tensor in loaded[0].values())

    def _path(self, part: Part, number: int) -> Path:
        name = "features"
        if part is not None:
            text = f"{part.pixels} {part.o!r} {part.epsilon!r} {part.seed}"
            name = f"perturbed-{part.pixels}-{hashed(text.encode())[:16]}"
        return self.folder / f"{name}-{self._shard}-{number:06d}.safetensors"

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def remove(self) -> None:
        """Remove the entry."""
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            raise CacheError(
                f"cache: {error.filename} cannot be removed: {error.strerror or error}"
            ) from error


def readable(size: float) -> str:
    """Return a number of bytes with its unit."""
    return f"{tqdm.format_sizeof(size)}B"


def _rows_of(parts: tuple[Part, ...], features: Features, labels: np.ndarray) -> dict[Part, Shard]:
    """Return the rows of some parts for a batch."""
    found: dict[Part, Shard] = {
        p: {"activation": features.perturbed[p].cpu()} for p in parts if p is not None
    }
    if None in parts:
        found[None] = {
            "activation": features.activation.cpu(),
            "logits": features.logits.cpu(),
            "prediction": features.prediction.cpu(),
            "label": torch.from_numpy(labels.astype(np.int64)),
        }
    return found


# Files.


def _open(directory: Path, create: bool) -> None:
    """Make an empty or new directory a cache, if asked for, and check that it is one."""
    marker = directory / MARKER
    try:
        # Another process may be making it one.
        empty = not directory.exists() or all(
            path.name == "lost+found" or path.suffix == ".tmp" for path in directory.iterdir()
        )
        if create and empty:
            with _writing(marker), replacing(marker) as beside:
                beside.write_text(json.dumps({"format": FORMAT}))
        if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == {"format": FORMAT}:
            return
    except CacheError:
        raise
    except (OSError, ValueError, RecursionError):
        pass
    raise CacheError(
        f"cache_dir: {directory} is not a feature cache of this version of the package (format {FORMAT}), and is left as it "
        "is; expected one, or a new or empty directory, for which the features are extracted again"
    )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise CacheError(
            f"cache: {path} cannot be written: {error.strerror or error}. Finished shards are kept, and a rerun continues "
            "from them"
        ) from error


def _write(path: Path, shard: Shard, about: dict[str, Any]) -> None:
    with _writing(path):
        write_tensors(path, _KEY, {"about": about, "place": _place(path)}, shard)


def _place(path: Path) -> str:
    return f"{path.parent.name} {path.stem}"


def _load(path: Path) -> tuple[Shard, dict[str, Any]] | None:
    """Return a file's tensors, mapped into memory, and its description (None if it is missing or damaged)."""
    try:
        state = path.stat()
    except OSError:
        return None
    return _load_version(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=8192)
def _load_version(path: Path, size: int, changed: int) -> tuple[Shard, dict[str, Any]] | None:
    """Load a file and compare it with its checksum, once as long as it does not change."""
    try:
        content, tensors, is_intact = read_tensors(path, _KEY)
    except ValueError:
        return None
    return (tensors, content["about"]) if is_intact and content["place"] == _place(path) else None

"""A store on disk.

It is a folder with a marker file, and in it a folder per entry: one network's activations of one set of images. A shard
is a safetensors file of :data:`~.store.SHARD` images, written beside its place and renamed into it, with a digest of its
content; reading executes nothing, and maps it into memory rather than loading it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import stat
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import StoreError
from .store import SHARD, Entry, Shard, Store

FORMAT = 2
MARKER = "openood_adascale_store.json"


class DiskStore(Store):
    """A folder.

    Args:
        folder: a store, or an empty or new folder, which becomes one.
        dtype: see :class:`Store`.

    Raises:
        StoreError: a folder that is no store, or that of another version; it is left untouched.
    """

    def __init__(self, folder: str | os.PathLike[str], dtype: str = "float32") -> None:
        super().__init__(dtype)
        self.folder = Path(folder).expanduser().absolute()
        _open(self.folder, make=True)

    @property
    def entries(self) -> Path:
        """Where the entries' folders lie."""
        return self.folder / "entries"

    def entry(self, key: str) -> Entry:
        return DiskEntry(self.entries / key)

    def takes(self, size: int) -> bool:
        return True

    def require(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise StoreError(
                f"store: {self.folder} needs {readable(size)} more for these images, and its disk has "
                f"{readable(free)} free; make room (openood-adascale store clear), keep them in half the size "
                "(OPENOOD_ADASCALE_STORE_DTYPE=float16), or run without a store"
            )


class DiskEntry(Entry):
    """A folder of shards, and ``about.json``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def about(self) -> dict[str, Any] | None:
        try:
            found = json.loads(_text_of(self.folder / "about.json"))
        except (OSError, ValueError, RecursionError):
            return None
        known = isinstance(found, dict) and isinstance(found.get("head"), str)
        return found if known and all(type(found.get(name)) is int for name in ("D", "N")) else None

    def begin(self, about: Mapping[str, Any]) -> None:
        _write(self.folder / "about.json", json.dumps(dict(about), indent=1).encode())

    def has(self, part: str, number: int, rows: int) -> bool:
        path = self._path(part, number)
        try:
            state = os.stat(path)
        except OSError:
            return False
        if not stat.S_ISREG(state.st_mode):  # a pipe would be waited for
            return False
        return _whole(str(path), self._place(part, number), state.st_size, state.st_mtime_ns, rows)

    def read(self, part: str, number: int) -> Shard:
        path = self._path(part, number)
        try:
            state = os.stat(path)
            return _mapped(str(path), state.st_size, state.st_mtime_ns)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"store: {path} cannot be read any more: {error}") from error

    def write(self, part: str, number: int, shard: Shard) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in shard.items()}
        _write(
            self._path(part, number), save(tensors, {"digest": _digest(tensors, self._place(part, number))})
        )

    def drop(self, part: str, number: int) -> None:
        self._path(part, number).unlink(missing_ok=True)

    def _place(self, part: str, number: int) -> str:
        return f"{self.folder.name} {part} {number}"

    def sweep(self) -> None:
        """Remove what runs that were killed on this machine left half-written."""
        for path in self.folder.glob(".*.tmp"):
            _, host, process, *_ = [*path.name.split("."), "", ""]
            if host == _host() and not _runs(process):
                path.unlink(missing_ok=True)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self._files())

    def parts(self) -> dict[str, int]:
        """How many rows of each part there can be in the shards that are there."""
        counted = Counter(
            path.stem.rpartition("-")[0] for path in self._files() if path.suffix == ".safetensors"
        )
        return {part: shards * SHARD for part, shards in counted.items()}

    def remove(self) -> None:
        """Remove it, but nothing that others may have put there.

        Raises:
            StoreError: a file cannot be removed.
        """
        try:
            for path in self._files():
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"store: {error.filename} cannot be removed: {error.strerror or error}"
            ) from error
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        found = [
            path
            for pattern in ("*.safetensors", ".*.tmp", "about.json")
            for path in self.folder.glob(pattern)
        ]
        return [path for path in found if path.is_file()]

    def _path(self, part: str, number: int) -> Path:
        return self.folder / f"{part}-{number:06d}.safetensors"


def open_store(folder: str | os.PathLike[str]) -> Iterator[DiskEntry]:
    """The entries of a store on disk that is there.

    Raises:
        StoreError: it is not, or is another version's.
    """
    path = Path(folder).expanduser().absolute()
    _open(path, make=False)
    for entry in sorted((path / "entries").glob("*")):
        if entry.is_dir() and not entry.is_symlink():
            yield DiskEntry(entry)


def readable(size: float) -> str:
    """A number of bytes, for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _open(folder: Path, make: bool) -> None:
    marker = folder / MARKER
    allowed = "expected a store of this package" + (", or an empty or new folder" if make else "")
    if not marker.exists():
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"store: {folder} is not a folder; {allowed}")
        others = (
            any(MARKER not in path.name and path.name != "lost+found" for path in folder.iterdir())
            if folder.exists()
            else False
        )
        if not make or others:
            if not marker.exists():  # another process has just made it one
                what = "is no store and not empty" if folder.exists() else "is not there"
                raise StoreError(f"store: {folder} {what}; {allowed}")
        else:
            _write(marker, json.dumps({"format": FORMAT}).encode())
    try:
        found = json.loads(_text_of(marker))["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"store: {marker} cannot be read ({error}); {allowed}") from error
    if found != FORMAT:
        raise StoreError(
            f"store: {folder} has the format {found!r}, of another version of this package; this one reads and writes "
            f"{FORMAT}. It is left as it is: take another folder"
        )


def _text_of(path: Path) -> str:
    if not path.is_file():  # a pipe would be waited for
        raise OSError(f"{path} is no file")
    return path.read_text(encoding="utf-8")


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{_host()}.{os.getpid()}.{uuid.uuid4().hex}.{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(content)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"store: {path} cannot be written: {error.strerror or error}. Shards that were written before are kept, and a "
            "rerun goes on from there"
        ) from error


def _digest(tensors: Mapping[str, Tensor], place: str) -> str:
    """Of a shard's content and of where it belongs."""
    digest = hashlib.blake2b(place.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@lru_cache(maxsize=65536)
def _whole(path: str, place: str, size: int, changed: int, rows: int) -> bool:
    """Whether a file holds what was written; looked at once as long as it does not change."""
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get("digest")
        tensors = _mapped(path, size, changed)
        return said == _digest(tensors, place) and all(len(tensor) == rows for tensor in tensors.values())
    except (OSError, SafetensorError, ValueError, RuntimeError):
        return False


@lru_cache(maxsize=4096)
def _mapped(path: str, size: int, changed: int) -> Shard:
    """A file's tensors, of its present state."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)


def _host() -> str:
    return "".join(c if c.isalnum() else "-" for c in socket.gethostname())


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:
        pass
    return True

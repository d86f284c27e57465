"""Which store images' activations go to and come from, and what an entry of it is keyed by.

``OPENOOD_ADASCALE_STORE`` names a folder for all of a process; ``off`` shares nothing. Without it a process shares
what it has in memory. Of what is kept on disk, ``OPENOOD_ADASCALE_STORE_DTYPE=bfloat16`` (or ``float16``) halves the
size.
"""

from __future__ import annotations

import contextvars
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..distributed.arithmetic import arithmetic
from ..errors import StoreError
from .disk import FORMAT, DiskStore
from .encode import fastest_precision
from .plan import Execution, Perturbation
from .store import MemoryStore, Store

VARIABLE = "OPENOOD_ADASCALE_STORE"
OFF = ("off", "0", "none")
"""Words for no store."""
DTYPE_VARIABLE = "OPENOOD_ADASCALE_STORE_DTYPE"
StoreLike = Store | str | os.PathLike[str] | bool | None
"""A store, its folder, False for none, or None for what the environment says."""

_memory: MemoryStore | None = None  # of the process
_chosen: contextvars.ContextVar[Store | None] = contextvars.ContextVar("store")


def current_store() -> Store | None:
    """The store in use; None where nothing is shared.

    Raises:
        StoreError: the environment names a folder that cannot be one.
    """
    try:
        return _chosen.get()
    except LookupError:
        return _store_of(os.environ.get(VARIABLE, "").strip() or None)


def chosen_store() -> Store | None:
    """The store in use, if someone chose one: by :func:`using_store` or ``OPENOOD_ADASCALE_STORE``.

    Raises:
        StoreError: as :func:`current_store`.
    """
    return current_store() if is_chosen() else None


def is_chosen() -> bool:
    """Whether someone has said what store to use, be it none."""
    try:
        _chosen.get()
    except LookupError:
        return bool(os.environ.get(VARIABLE, "").strip())
    return True


@contextmanager
def using_store(store: StoreLike) -> Iterator[None]:
    """Have all passes over images within draw on ``store``; None leaves it as it is.

    >>> with using_store("activations"):
    ...     first = AdaSCALE(network).fit(val_loader).predict_loader(test_loader)
    ...     again = MSP(network).predict_loader(test_loader)        # from what the first has left

    Raises:
        StoreError: a folder that cannot be a store.
    """
    if store is None:
        yield
        return
    token = _chosen.set(store if isinstance(store, Store) else _store_of(store))
    try:
        yield
    finally:
        _chosen.reset(token)


def forget() -> None:
    """Forget what this process shares in memory."""
    if _memory is not None:
        _memory.clear()


def _store_of(named: str | os.PathLike[str] | bool | None) -> Store | None:
    global _memory
    if named is False or (isinstance(named, str) and named.lower() in OFF):
        return None
    if named is None or named is True:
        _memory = _memory or MemoryStore()
        return _memory
    if not isinstance(named, str | os.PathLike) or not os.fspath(named):
        raise StoreError(f"store: {named!r} is not allowed; expected a folder, a Store, or False for none")
    return DiskStore(named, os.environ.get(DTYPE_VARIABLE, "").strip() or "float32")


def entry_key(
    network: str, images: str, execution: Execution, device: torch.device, dtype: str
) -> tuple[str, dict[str, str]]:
    """What an entry is found by, and what went into it, in words.

    Args:
        network: the network's digest.
        images: the data set's.
        execution: how the network is run.
        device: where.
        dtype: what the activations are kept in.
    """
    precision = fastest_precision(device) if execution.precision == "auto" else execution.precision
    parts = {
        "format": str(FORMAT),
        "network": network,
        "images": images,
        "precision": precision,
        "memory_format": execution.memory_format,
        "kept_in": dtype,
        "device": device.type,
        "arithmetic": repr(sorted(arithmetic().items(), key=str)),
        **{name: _version(name) for name in ("torch", "torchvision", "PIL", "cv2", "numpy")},
    }
    text = "\n".join(f"{name}={value}" for name, value in parts.items())
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), parts


def _version(name: str) -> str:
    return str(getattr(sys.modules.get(name), "__version__", ""))


def part_name(perturbation: Perturbation) -> str:
    """What the shards of a_ε are called."""
    p = perturbation
    text = f"{p.pixels} {p.o!r} {p.epsilon!r} {p.seed}"
    return f"perturbed-{p.pixels}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"

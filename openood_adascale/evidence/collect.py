"""A loader into Evidence: what everything that needs a pass over images calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import NotFinite
from .classifier import Classifier
from .encode import encode, prepare
from .evidence import Evidence
from .fingerprint import Glance, buffer_versions, network_digest
from .modes import unwrap
from .plan import Execution, Plan


class Collected(NamedTuple):
    """Evidence of images, and their labels."""

    evidence: Evidence
    labels: np.ndarray
    """(N,) int64, −1 where unknown."""


class Reader:
    """A network as a source of Evidence; finds its head anew whenever anyone has touched it.

    The network is left as it was found: mode, ``requires_grad``, ``.grad``, device and hooks. It is run in eval
    mode, on its own device and in its own dtype.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._classifier: Classifier | None = None
        self._glance: Glance | None = None
        self.volatile: frozenset[str] = frozenset()
        """Names of buffers that running the network changes: counters and the like."""

    @property
    def untouched(self) -> bool:
        """Whether the network is as the last pass left it. What a pass itself changes does not count."""
        return self._glance is not None and self._glance.still_holds(unwrap(self.network))

    def digest(self) -> str:
        """The network's digest, without what running it changes."""
        return network_digest(self.network, self.volatile)

    def read(self, images: Tensor, plan: Plan, execution: Execution) -> Evidence:
        """Evidence of one batch, on the network's device; the errors are :func:`~.encode.encode`'s."""
        network = unwrap(self.network)
        before = None
        if self._classifier is None or not self.untouched:
            before = buffer_versions(network)
            self._classifier = Classifier(self.network, prepare(network, images))
        encoded = encode(self._classifier, images, plan.perturbations, execution)
        if before is not None:
            after = buffer_versions(network)
            self.volatile = frozenset(name for name in before if before[name] != after.get(name))
        self._glance = Glance(network, self.volatile)
        with torch.no_grad():
            return Evidence.of(encoded, plan)


def batches(
    reader: Reader,
    loader: Iterable[Any],
    plan: Plan,
    execution: Execution,
    progress: bool | None = None,
    description: str = "",
) -> Iterator[Collected]:
    """Evidence and labels of each of a loader's batches, on the network's device, in one pass.

    Args:
        reader: of the network.
        loader: yields ``(images, labels, …)``, OpenOOD's dicts or images. Empty batches are passed over.
        plan: what is asked of the images.
        execution: how the network is run.
        progress: True or False shows or hides the bar; None shows it in a terminal.
        description: for the bar.

    Raises:
        ValueError: a loader without images.
        TypeError: a batch that is none.
        NotFinite: NaN or infinity; names the images by their place in the loader and, where it tells it, file.
    """
    seen = 0
    for batch in tqdm(loader, desc=description, disable=hidden(progress)):
        images, labels = unpack(batch)
        if len(images) == 0:
            continue
        try:
            yield Collected(reader.read(images, plan, execution), labels)
        except NotFinite as error:
            raise error.located(seen, image_names(batch)) from None
        seen += len(labels)
    if not seen:
        raise ValueError("loader: it yields no images; expected at least one batch")


def collect(
    reader: Reader,
    loader: Iterable[Any],
    plan: Plan,
    execution: Execution,
    progress: bool | None = None,
    description: str = "",
) -> Collected:
    """Evidence and labels of all of a loader's images, in main memory, in one pass; see :func:`batches`."""
    parts, labels = [], []
    for evidence, label in batches(reader, loader, plan, execution, progress, description):
        parts.append(evidence.cpu())
        labels.append(label)
    return Collected(Evidence.cat(parts), np.concatenate(labels))


def hidden(progress: bool | None) -> bool | None:
    """tqdm's ``disable`` for a ``progress`` that is True, False or, in a terminal, None."""
    return None if progress is None else not progress


def image_names(batch: Any) -> list[str]:
    """The files of a batch's images, where it tells them as OpenOOD's do."""
    names = batch.get("image_name") if isinstance(batch, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def unpack(batch: Any) -> tuple[Tensor, np.ndarray]:
    """Images and labels of a loader's batch: OpenOOD's dict, ``(images, labels, …)`` or the images alone.

    Labels that are not there, or are not one whole number per image, become −1.
    """
    labels = None
    if isinstance(batch, Mapping):
        if "data" not in batch:
            raise TypeError(
                f"loader: its batches are mappings with {sorted(batch)}; expected 'data' (and 'label')"
            )
        images, labels = batch["data"], batch.get("label")
    elif isinstance(batch, tuple | list):
        if not batch:
            raise TypeError(
                f"loader: one of its batches is {batch!r}; expected images, or (images, labels, …)"
            )
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
    else:
        images = batch
    if not hasattr(images, "__len__"):
        raise TypeError(f"loader: {type(images).__name__} is not allowed; expected batches of images")
    return images, _classes(labels, len(images))


def _classes(labels: Any, count: int) -> np.ndarray:
    unknown = np.full(count, -1)
    try:
        given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels).reshape(count)
    except (TypeError, ValueError):
        return unknown
    if given.dtype.kind not in "iuf":
        return unknown
    with np.errstate(invalid="ignore"):
        whole = given.astype(np.int64)
    # A fraction, NaN, or a number that int64 cannot hold comes back as another.
    return whole if (whole == given).all() else unknown

"""A loader into Evidence: what everything that needs a pass over images calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..errors import NotFinite
from .batch import hidden, image_names, unpack, watched
from .encode import Encoded
from .evidence import Evidence
from .modes import device_of, unwrap
from .passes import Asked, Pass, done, shared_batches
from .plan import Execution, Plan
from .reader import Reader
from .rows import rows_of


class Collected(NamedTuple):
    """Evidence of images, and their labels."""

    evidence: Evidence
    labels: np.ndarray
    """(N,) int64, −1 where unknown."""


def batches(
    reader: Reader,
    loader: Iterable[Any],
    plan: Plan,
    execution: Execution,
    progress: bool | None = None,
    description: str = "",
) -> Iterator[Collected]:
    """Evidence and labels of each of a loader's batches, on the network's device, in one pass at most: where the store in
    use has what is asked for, the network is not run.

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
        StoreError: the store in use cannot be used, or has no room.
    """
    rows = rows_of(reader, loader, execution, 1 + len(plan.perturbations))
    if rows is not None:
        for encoded, labels in rows.batches(plan.perturbations, progress, description):
            with torch.no_grad():
                yield Collected(Evidence.of(encoded, plan), labels)
        return
    shared = shared_batches(reader, loader)
    if shared is not None:
        yield from _shared(reader, loader, plan, execution, shared, progress, description)
        return
    seen = 0
    for batch in watched(loader, progress, description):
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


@dataclass
class Gathering:
    """Evidence of a batch, in main memory."""

    plan: Plan

    def __call__(self, encoded: Encoded, labels: np.ndarray) -> Collected:
        with torch.no_grad():
            return Collected(Evidence.of(encoded, self.plan).cpu(), labels)


def _shared(
    reader: Reader,
    loader: Any,
    plan: Plan,
    execution: Execution,
    shared: list[list[int]],
    progress: bool | None,
    description: str,
) -> Iterator[Collected]:
    """:func:`batches`, by all processes of the group."""
    work = Pass(reader, loader, shared, Asked(plan.perturbations, execution), Gathering(plan), counted=True)
    device = device_of(unwrap(reader.network))
    total = sum(map(len, shared))
    with tqdm(total=total, desc=description, unit="image", disable=hidden(progress)) as bar:
        for evidence, labels in done(work, len(shared)):
            yield Collected(evidence.to(device), labels)
            bar.update(len(labels))
    if not total:
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

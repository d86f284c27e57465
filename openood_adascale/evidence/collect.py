"""A loader into Evidence: what everything that needs a pass over images calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import NotFinite
from .batch import image_names, unpack, watched
from .evidence import Evidence
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

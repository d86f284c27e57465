"""pytorch-ood's labels: below 0 an image is out-of-distribution, and no detector learns from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...evidence.batch import unpack
from ...evidence.collect import batches
from ...evidence.evidence import Evidence
from ...evidence.plan import Execution, Plan
from ...evidence.reader import Reader
from ...evidence.rows import rows_of

NONE = (
    "loader: no image of it is in-distribution; expected batches (images, labels), a whole number per image, of which "
    "those from 0 on are learnt from"
)


def known_evidence(
    reader: Reader, loader: Iterable[Any], plan: Plan, execution: Execution
) -> Iterator[Evidence]:
    """Evidence of each batch's in-distribution images, in one pass at most. Where nothing is drawn from the store in use,
    the network does not see the others.

    Raises:
        ValueError: there are none; and as :func:`~openood_adascale.evidence.collect.batches`.
    """
    if rows_of(reader, loader, execution, 1 + len(plan.perturbations)) is None:
        loader = _known(loader)
    some = False
    for evidence, labels in batches(reader, loader, plan, execution, progress=False):
        known = torch.from_numpy(labels >= 0)
        if bool(known.any()):
            some = True
            yield evidence[known.to(evidence.logits.device)]
    if not some:
        raise ValueError(NONE)


def _known(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """A loader's batches without the images whose labels are below 0, or are none."""
    some = False
    for batch in loader:
        images, labels = unpack(batch)
        known = torch.from_numpy(labels >= 0)
        if bool(known.any()):
            some = True
            yield images[known], torch.from_numpy(labels)[known]
    if not some:
        raise ValueError(NONE)

"""The plain network's accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..evidence.batch import unpack, watched
from ..evidence.encode import prepare
from ..evidence.head import logits_of
from ..evidence.modes import frozen


class Hits:
    """Counts right predictions."""

    def __init__(self) -> None:
        self._hits = self._total = 0

    def add(self, prediction: np.ndarray, labels: np.ndarray) -> None:
        """Count (N,) predicted classes against (N,) labels.

        Raises:
            ValueError: labels that are no classes.
        """
        if (labels < 0).any():
            raise ValueError(
                f"loader: its batch has labels {labels[labels < 0][:3]}; expected classes from 0 on"
            )
        self._hits += int((prediction == labels).sum())
        self._total += len(labels)

    def percent(self) -> float:
        """The accuracy so far.

        Raises:
            ValueError: nothing was counted.
        """
        if not self._total:
            raise ValueError("loader: it yields no images; expected at least one batch")
        return 100 * self._hits / self._total


def accuracy(network: nn.Module, *loaders: Iterable[Any], progress: bool | None = None) -> float:
    """The plain network's top-1 accuracy in percent over all images of ``loaders``; its state is put back."""
    hits = Hits()
    with frozen(network), torch.no_grad():
        for loader in loaders:
            for batch in watched(loader, progress, "Accuracy"):
                images, labels = unpack(batch)
                if len(images) == 0:
                    continue
                # A network may change its input in place.
                logits = logits_of(network, network(prepare(network, images).clone()))
                hits.add(logits.argmax(1).cpu().numpy(), labels)
    return hits.percent()

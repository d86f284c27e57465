"""MSP: maximum softmax probability (Hendrycks & Gimpel, ICLR 2017)."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import override

from ..features.statistics import FeatureStatistics
from .base import Detector
from .settings import Settings


class MSP(Detector[Settings, None]):
    """Maximum softmax probability of the plain logits; needs no fitting.

    >>> scores = MSP(network).score(images)
    >>> scores.allclose(network(images).softmax(1).max(1).values)
    True

    Args:
        network: Classifier that returns (B, C) logits and ends in a linear layer.
        precision: See :class:`~.settings.Settings`.
        memory_format: See :class:`~.settings.Settings`.
        forward_batch_size: See :class:`~.settings.Settings`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        precision: str = "float32",
        memory_format: str = "auto",
        forward_batch_size: int | None = None,
    ) -> None:
        super().__init__(
            network, precision=precision, memory_format=memory_format, forward_batch_size=forward_batch_size
        )

    @override
    def score_statistics(
        self, statistics: FeatureStatistics, settings: Settings, state: None
    ) -> tuple[Tensor, Tensor]:
        probability, prediction = statistics.logits.softmax(1).max(1)
        return prediction, probability

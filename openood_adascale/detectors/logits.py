"""Scores of the plain logits: MSP (Hendrycks & Gimpel, ICLR 2017) and the energy (Liu et al., NeurIPS 2020)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from .. import functional
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
        settings: ``precision``, ``memory_format`` and ``forward_batch_size``; see :class:`~.settings.Settings`.
    """

    @override
    def score_statistics(
        self, statistics: FeatureStatistics, settings: Settings, state: None
    ) -> tuple[Tensor, Tensor]:
        probability, prediction = statistics.logits.softmax(1).max(1)
        return prediction, probability


class Energy(Detector[Settings, None]):
    """Energy (logsumexp) of the plain logits; needs no fitting.

    >>> detector = Energy(network).fit_threshold(val_loader)
    >>> detector.is_ood(images).shape
    torch.Size([24])

    Args:
        network: Classifier that returns (B, C) logits and ends in a linear layer.
        settings: ``precision``, ``memory_format`` and ``forward_batch_size``; see :class:`~.settings.Settings`.
    """

    @override
    def score_statistics(
        self, statistics: FeatureStatistics, settings: Settings, state: None
    ) -> tuple[Tensor, Tensor]:
        logits = statistics.logits
        dtype = functional.statistics_dtype(logits.device)
        return logits.argmax(1), functional.energy(logits.to(dtype))

"""Energy score (Liu et al., NeurIPS 2020), OpenOOD's ``ebo``."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import override

from .. import functional
from ..features.statistics import FeatureStatistics
from .base import Detector
from .settings import Settings


class Energy(Detector[Settings, None]):
    """Energy (logsumexp) of the plain logits; needs no fitting.

    >>> detector = Energy(network).fit_threshold(val_loader)
    >>> detector.is_ood(images).shape
    torch.Size([24])

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
        logits = statistics.logits
        dtype = functional.statistics_dtype(logits.device)
        return logits.argmax(1), functional.energy(logits.to(dtype))

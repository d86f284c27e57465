"""LTS, logit scaling (Djurisic et al., arXiv 2409.01175)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from typing_extensions import override

from .. import functional
from ..features.statistics import FeatureStatistics
from .base import Detector
from .scale import FixedPercentileSettings


@dataclass(frozen=True)
class LTSSettings(FixedPercentileSettings):
    """Settings of LTS.

    >>> LTSSettings(percentile=100)
    Traceback (most recent call last):
    openood_adascale.errors.SettingError: percentile: 100 is not allowed; expected a number in (0, 100)

    Args:
        percentile: Percentile of the scaling factor in percent, in (0, 100); 95 keeps the largest 5 %.
    """

    percentile: float = 95.0


class LTS(Detector[LTSSettings, None]):
    """Energy of z·S², with S = Σ a⁺ / Σ (largest 5 % of a⁺): AdaSCALE-L with p_min = p_max. Needs no fitting.

    >>> fixed = AdaSCALE(network, variant="L", percentile=(95, 95)).fit(val_loader)
    >>> LTS(network, percentile=95).score(images).allclose(fixed.score(images))
    True

    Args:
        network: Classifier that returns (B, C) logits and ends in a linear layer.
        percentile: Percentile of the scaling factor S in percent, in (0, 100).
        precision: See :class:`~.settings.Settings`.
        memory_format: See :class:`~.settings.Settings`.
        forward_batch_size: See :class:`~.settings.Settings`.
    """

    settings_class = LTSSettings

    def __init__(
        self,
        network: nn.Module,
        *,
        percentile: float = 95.0,
        precision: str = "float32",
        memory_format: str = "auto",
        forward_batch_size: int | None = None,
    ) -> None:
        super().__init__(
            network,
            percentile=percentile,
            precision=precision,
            memory_format=memory_format,
            forward_batch_size=forward_batch_size,
        )

    @override
    def score_statistics(
        self, statistics: FeatureStatistics, settings: LTSSettings, state: None
    ) -> tuple[Tensor, Tensor]:
        factor = statistics.scaling_factor(settings.percentile)
        logits = functional.scale_logits(statistics.logits, factor)
        return logits.argmax(1), functional.energy(logits)

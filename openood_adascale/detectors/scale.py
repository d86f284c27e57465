"""SCALE (Xu et al., ICLR 2024) and LTS (Djurisic et al., arXiv 2409.01175): scaling at a fixed percentile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import Unpack, override

from .. import functional
from ..features.statistics import FeatureRequest, FeatureStatistics
from .base import Detector
from .settings import InferenceOptions, Settings, number_within, setting


@dataclass(frozen=True)
class FixedPercentileSettings(Settings):
    """Settings of the methods with the same percentile for every image.

    >>> FixedPercentileSettings(percentile=90).request().percentiles
    (90.0, 90.0)

    Args:
        percentile: Percentile of the scaling factor in percent, in (0, 100).
    """

    percentile: float = setting(85.0, number_within, "(0, 100)")

    @override
    def request(self) -> FeatureRequest:
        return FeatureRequest((self.percentile, self.percentile))


class SCALE(Detector[FixedPercentileSettings, None]):
    """Energy of the activation scaled by exp(r) at a fixed percentile; needs no fitting.

    >>> detector = SCALE(network, percentile=90)
    >>> classes, scores = detector.predict(images)
    >>> found = detector.search(val_loader, ood_val_loader, {"percentile_list": [65, 85]})
    >>> found.results["percentile"].tolist()
    [65.0, 85.0]

    Args:
        network: Classifier that returns (B, C) logits and ends in a linear layer.
        percentile: Percentile of the scaling factor r in percent, in (0, 100).
        inference: ``precision``, ``memory_format`` and ``forward_batch_size``; see :class:`~.settings.Settings`.
    """

    settings_class = FixedPercentileSettings
    default_sweep: ClassVar[Mapping[str, Sequence[Any]]] = {"percentile_list": [65, 70, 75, 80, 85, 90, 95]}

    def __init__(
        self, network: nn.Module, *, percentile: float = 85.0, **inference: Unpack[InferenceOptions]
    ) -> None:
        super().__init__(network, percentile=percentile, **inference)

    @override
    def score_statistics(
        self, statistics: FeatureStatistics, settings: FixedPercentileSettings, state: None
    ) -> tuple[Tensor, Tensor]:
        factor = statistics.scaling_factor(settings.percentile)
        logits = functional.scale_activation_logits(statistics.logits, statistics.head.bias, factor)
        return logits.argmax(1), functional.energy(logits)


@dataclass(frozen=True)
class LTSSettings(FixedPercentileSettings):
    """Settings of LTS.

    >>> LTSSettings(percentile=100)
    Traceback (most recent call last):
    openood_adascale.errors.SettingError: percentile: 100 is not allowed; expected a number in (0, 100)

    Args:
        percentile: Percentile of the scaling factor in percent, in (0, 100); 95 keeps the largest 5 %.
    """

    percentile: float = setting(95.0, number_within, "(0, 100)")


class LTS(Detector[LTSSettings, None]):
    """Energy of z·S², with S = Σ a⁺ / Σ (largest 5 % of a⁺): AdaSCALE-L with p_min = p_max. Needs no fitting.

    >>> fixed = AdaSCALE(network, variant="L", percentile=(95, 95)).fit(val_loader)
    >>> LTS(network, percentile=95).score(images).allclose(fixed.score(images))
    True

    Args:
        network: Classifier that returns (B, C) logits and ends in a linear layer.
        percentile: Percentile of the scaling factor S in percent, in (0, 100).
        inference: ``precision``, ``memory_format`` and ``forward_batch_size``; see :class:`~.settings.Settings`.
    """

    settings_class = LTSSettings

    def __init__(
        self, network: nn.Module, *, percentile: float = 95.0, **inference: Unpack[InferenceOptions]
    ) -> None:
        super().__init__(network, percentile=percentile, **inference)

    @override
    def score_statistics(
        self, statistics: FeatureStatistics, settings: LTSSettings, state: None
    ) -> tuple[Tensor, Tensor]:
        factor = statistics.scaling_factor(settings.percentile)
        logits = functional.scale_logits(statistics.logits, factor)
        return logits.argmax(1), functional.energy(logits)

"""SCALE (Xu et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import override

from .. import functional
from ..features.statistics import FeatureRequest, FeatureStatistics
from .base import Detector
from .settings import Settings, number_within


@dataclass(frozen=True)
class FixedPercentileSettings(Settings):
    """Settings of the methods with the same percentile for every image.

    >>> FixedPercentileSettings(percentile=90).request().percentiles
    (90.0, 90.0)

    Args:
        percentile: Percentile of the scaling factor in percent, in (0, 100).
    """

    percentile: float = 85.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("percentile", number_within("percentile", self.percentile, 0, 100))

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
        precision: See :class:`~.settings.Settings`.
        memory_format: See :class:`~.settings.Settings`.
        forward_batch_size: See :class:`~.settings.Settings`.
    """

    settings_class = FixedPercentileSettings
    default_sweep: ClassVar[Mapping[str, Sequence[Any]]] = {"percentile_list": [65, 70, 75, 80, 85, 90, 95]}

    def __init__(
        self,
        network: nn.Module,
        *,
        percentile: float = 85.0,
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
        self, statistics: FeatureStatistics, settings: FixedPercentileSettings, state: None
    ) -> tuple[Tensor, Tensor]:
        factor = statistics.scaling_factor(settings.percentile)
        logits = functional.scale_activation_logits(statistics.logits, statistics.head.bias, factor)
        return logits.argmax(1), functional.energy(logits)

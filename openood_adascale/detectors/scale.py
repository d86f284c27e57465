"""SCALE (Xu et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .. import equations
from ..evidence.evidence import Evidence
from ..evidence.plan import Plan
from .base import Detector
from .settings import Settings, number_within


@dataclass(frozen=True)
class FixedPercentileSettings(Settings):
    """Settings of the methods whose percentile is the same for every image.

    >>> FixedPercentileSettings(percentile=90).plan().percentiles
    (90.0, 90.0)
    """

    percentile: float = 85.0
    """In percent, within (0, 100)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("percentile", number_within("percentile", self.percentile, 0, 100))

    def plan(self) -> Plan:
        return Plan((self.percentile, self.percentile))


class SCALE(Detector[FixedPercentileSettings, None]):
    """The activation scaled by exp(r) at one percentile for all images.

    >>> detector = SCALE(network, percentile=90)
    >>> classes, scores = detector.predict(images)
    >>> found = detector.search(val_loader, ood_val_loader, {"percentile_list": [65, 85]})
    >>> found.table["percentile"].tolist()
    [65.0, 85.0]
    """

    settings_class = FixedPercentileSettings
    default_sweep: ClassVar[Mapping[str, Sequence[Any]]] = {"percentile_list": [65, 70, 75, 80, 85, 90, 95]}

    def judge(
        self, evidence: Evidence, settings: FixedPercentileSettings, state: None
    ) -> tuple[Tensor, Tensor]:
        factor = evidence.scaling_factor(settings.percentile)
        logits = equations.scale_activation_logits(evidence.logits, evidence.head.bias, factor)
        return logits.argmax(1), equations.energy(logits)

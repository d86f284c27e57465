"""The methods that AdaSCALE is compared with, behind the same interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import functional as F
from .detector import Detector
from .evidence import Evidence, Plan
from .settings import Settings, number_within


class MSP(Detector[Settings]):
    """Maximum softmax probability (Hendrycks & Gimpel, ICLR 2017)."""

    def judge(self, evidence: Evidence, settings: Settings, state: Any) -> tuple[Tensor, Tensor]:
        probability, pred = evidence.logits.softmax(1).max(1)
        return pred, probability


class Energy(Detector[Settings]):
    """Energy of the plain logits (Liu et al., NeurIPS 2020); OpenOOD's ``ebo``."""

    def judge(self, evidence: Evidence, settings: Settings, state: Any) -> tuple[Tensor, Tensor]:
        return evidence.logits.argmax(1), F.energy(
            evidence.logits.to(F.statistics_dtype(evidence.logits.device))
        )


@dataclass(frozen=True)
class FixedPercentileSettings(Settings):
    """Settings of the methods whose percentile is the same for every image."""

    percentile: float = 85.0
    """In percent, within (0, 100)."""

    def __post_init__(self) -> None:
        self._set("percentile", number_within("percentile", self.percentile, 0, 100))

    def plan(self) -> Plan:
        return Plan((self.percentile, self.percentile))


class SCALE(Detector[FixedPercentileSettings]):
    """SCALE (Xu et al., ICLR 2024): the activation scaled by exp(r) at one percentile for all images."""

    settings_class = FixedPercentileSettings
    default_sweep: ClassVar[dict[str, list[Any]]] = {"percentile_list": [65, 70, 75, 80, 85, 90, 95]}

    def judge(
        self, evidence: Evidence, settings: FixedPercentileSettings, state: Any
    ) -> tuple[Tensor, Tensor]:
        logits = F.scale_activation_logits(
            evidence.logits, evidence.head.bias, _fixed_factor(evidence, settings)
        )
        return logits.argmax(1), F.energy(logits)


def _fixed_factor(evidence: Evidence, settings: FixedPercentileSettings) -> Tensor:
    assert evidence.total is not None
    return evidence.scaling_factor(torch.full_like(evidence.total, settings.percentile))

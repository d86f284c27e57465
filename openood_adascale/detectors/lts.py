"""LTS, logit scaling (Djurisic et al., arXiv 2409.01175)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import equations
from ..evidence.evidence import Evidence
from .base import Detector
from .scale import FixedPercentileSettings


@dataclass(frozen=True)
class LTSSettings(FixedPercentileSettings):
    """LTS's hyperparameter.

    >>> LTSSettings(percentile=100)
    Traceback (most recent call last):
    openood_adascale.errors.SettingError: percentile: 100 is not allowed; expected a number in (0, 100)

    Raises:
        SettingError: a value out of range, when made.
    """

    percentile: float = 95.0
    """In percent, within (0, 100): S compares all activations with the largest 5 %."""


class LTS(Detector[LTSSettings, None]):
    """z·S², with S = Σ a⁺ / Σ (its largest 5 %): AdaSCALE-L with p_min = p_max. It learns nothing.

    >>> fixed = AdaSCALE(network, variant="L", percentile=(95, 95)).fit(val_loader)
    >>> LTS(network, percentile=95).score(images).allclose(fixed.score(images))
    True
    """

    settings_class = LTSSettings

    def judge(self, evidence: Evidence, settings: LTSSettings, state: None) -> tuple[Tensor, Tensor]:
        logits = equations.scale_logits(evidence.logits, evidence.scaling_factor(settings.percentile))
        return logits.argmax(1), equations.energy(logits)

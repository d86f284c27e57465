"""MSP: the maximum softmax probability (Hendrycks & Gimpel, ICLR 2017)."""

from __future__ import annotations

from torch import Tensor

from ..evidence.evidence import Evidence
from .base import Detector
from .settings import Settings


class MSP(Detector[Settings, None]):
    """The largest softmax probability of the plain logits.

    >>> scores = MSP(network).score(images)          # it learns nothing, so that there is nothing to fit
    >>> scores.allclose(network(images).softmax(1).max(1).values)
    True
    """

    def judge(self, evidence: Evidence, settings: Settings, state: None) -> tuple[Tensor, Tensor]:
        probability, pred = evidence.logits.softmax(1).max(1)
        return pred, probability

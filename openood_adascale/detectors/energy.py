"""Energy (Liu et al., NeurIPS 2020); OpenOOD's ``ebo``."""

from __future__ import annotations

from torch import Tensor

from .. import equations
from ..evidence.evidence import Evidence
from .base import Detector
from .settings import Settings


class Energy(Detector[Settings, None]):
    """The energy of the plain logits.

    >>> detector = Energy(network).calibrate(val_loader)         # their scores, for a threshold
    >>> detector.is_ood(images).shape
    torch.Size([24])
    """

    def judge(self, evidence: Evidence, settings: Settings, state: None) -> tuple[Tensor, Tensor]:
        logits = evidence.logits
        dtype = equations.statistics_dtype(logits.device)
        return logits.argmax(1), equations.energy(logits.to(dtype))

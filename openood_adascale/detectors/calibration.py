"""What a detector remembers of in-distribution validation images, so that a score becomes a decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ..evidence.evidence import Evidence
from ..evidence.fingerprint import Glance, network_digest
from ..evidence.modes import unwrap
from ..metrics import score_kept
from .settings import Settings, number_within

if TYPE_CHECKING:
    from .base import Detector

# Images of kept Evidence that are judged at a time, so that it needs little more memory.
_ROWS = 4096


@dataclass(frozen=True)
class MadeWith:
    """The network and the settings that something was made with."""

    network: str
    """The network's digest."""
    volatile: frozenset[str]
    """Buffers and attributes that it leaves out."""
    settings: dict[str, Any]

    def is_of(self, network: nn.Module) -> bool:
        """Whether ``network`` is that one; looks at all of its weights and attributes."""
        return network_digest(network, self.volatile) == self.network

    def changed(self, now: Mapping[str, Any]) -> dict[str, str]:
        """Which of these settings are others ``now``, and what is to be told of each."""
        before = {name: self.settings.get(name, value) for name, value in now.items()}
        return {
            name: f"{name} is {value!r} and was {before[name]!r}"
            for name, value in now.items()
            if value != before[name]
        }


@dataclass
class Validation:
    """The scores of in-distribution validation images."""

    scores: np.ndarray
    """(n_val,) float64, ascending, finite."""
    made_with: MadeWith
    _glance: Glance | None = None

    @classmethod
    def of(cls, detector: Detector[Any, Any], scores: np.ndarray) -> Validation:
        """Of (n_val,) scores that ``detector``, as it is, has just given.

        Raises:
            ValueError: NaN or infinity; says how many.
        """
        if bad := int(np.count_nonzero(~np.isfinite(scores))):
            raise ValueError(f"scores: {bad} of {len(scores)} are NaN or infinite; expected finite numbers")
        ordered = np.sort(scores.astype(np.float64))
        ordered.setflags(write=False)
        learnt, reader = detector.learnt_with, detector.reader
        # What it was fitted with was just seen to be of the present network, whose digest takes its time.
        digest, volatile = (
            (reader.digest(), reader.volatile) if learnt is None else (learnt.network, learnt.volatile)
        )
        return cls(ordered, MadeWith(digest, volatile, judged_with(detector.settings)))

    @classmethod
    def of_evidence(cls, detector: Detector[Any, Any], known: Evidence) -> Validation | None:
        """Of images whose Evidence is there already; None where it, or a score, does not serve."""
        if not known.plan.covers(detector.settings.plan()):
            return None
        blocks = (known[start : start + _ROWS] for start in range(0, len(known), _ROWS))
        judged = [detector.judge(block, detector.settings, detector.state)[1] for block in blocks]
        scores = np.concatenate([part.cpu().numpy() for part in judged])
        return cls.of(detector, scores) if np.isfinite(scores).all() else None

    def outdated(self, network: nn.Module, settings: Settings, thorough: bool = True) -> str | None:
        """Why the scores do not hold for ``network`` and ``settings``; None if they do.

        Args:
            thorough: look at all of the network's weights and attributes, rather than at whether it has been touched.
        """
        # A watch of its own: a method that needs no fit reads other networks, too, and the reader's watch follows.
        if thorough or self._glance is None or not self._glance.still_holds(unwrap(network)):
            if not self.made_with.is_of(network):
                return "network: its layers or weights are not those"
            self._glance = Glance(unwrap(network), self.made_with.volatile)
        changed = self.made_with.changed(judged_with(settings))
        return f"settings: {', '.join(changed.values())}; they are not those" if changed else None


def judged_with(settings: Settings) -> dict[str, Any]:
    """Those settings that a score depends on."""
    enter = {*settings.learnt_with(), *settings.only_judge}
    return {name: value for name, value in settings.as_dict().items() if name in enter}


def threshold_of(scores: np.ndarray, tpr: float) -> float:
    """The largest of ``scores`` that at least the share ``tpr`` of them reach: ``np.mean(scores >= threshold) >= tpr``.

    Args:
        scores: (N,) ascending, N > 0.
        tpr: within (0, 1].

    Raises:
        SettingError: another ``tpr``.
    """
    return score_kept(scores, number_within("tpr", tpr, 0, 1, brackets="(]"))


def threshold(detector: Detector[Any, Any], tpr: float, thorough: bool = False) -> float:
    """:meth:`.base.Detector.threshold`.

    Args:
        thorough: as in :meth:`Validation.outdated`.
    """
    detector.require_fit(thorough)
    name, kept = type(detector).__name__, detector.validation
    if kept is None:
        raise RuntimeError(
            f"{name} remembers no scores of validation images: call calibrate(loader) with in-distribution ones first"
        )
    if why := kept.outdated(detector.network, detector.settings, thorough):
        raise RuntimeError(f"{why} that {name} scored validation images with; call calibrate(loader) again")
    return threshold_of(kept.scores, tpr)

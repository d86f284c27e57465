"""An evaluation that all processes of the caller's torch.distributed group have called: done together, and known to all."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from ..detectors.base import Detector
from ..detectors.calibration import Validation
from ..distributed.member import portable
from ..distributed.servant import Servant
from ..distributed.start import callers_team
from ..distributed.team import is_directing
from ..errors import CannotBeSent
from ..evidence.fingerprint import network_digest

R = TypeVar("R")
Detectors = Mapping[str, Detector[Any, Any]]


def together(call: Callable[[], R], detectors: Detectors) -> R:
    """What ``call`` gives in process 0, in all processes of the group; its passes over images are shared among them. The
    detectors of all have learnt what that one's have.

    Without a group, or within one that is directed already, it is just called.

    Raises:
        CannotBeSent: the processes have called it with other detectors or networks.
        Exception: what ``call`` raised in process 0, in all of them.
    """
    team = None if is_directing() else callers_team()
    if team is None:
        return call()
    if isinstance(team, Servant):
        team.serve()
        told: Outcome[R] = pickle.loads(team.tell_all(None))
        if told.failed is None:
            _take_over(told.learnt, detectors)
        return told.result()
    outcome: Outcome[R] = Outcome()
    with team.directing():
        try:
            outcome.results.append(call())
        except Exception as error:
            outcome.failed = error
    outcome.learnt = {name: _learnt(detector) for name, detector in detectors.items()}
    team.tell_all(pickle.dumps(outcome.portable()))
    return outcome.result()


@dataclass
class Outcome(Generic[R]):
    """Of a call in process 0."""

    results: list[R] = field(default_factory=list)
    """What it gave, if it did."""
    failed: Exception | None = None
    learnt: dict[str, dict[str, Any]] = field(default_factory=dict)

    def portable(self) -> Outcome[R]:
        """The same for other processes."""
        return replace(self, failed=None if self.failed is None else portable(self.failed, "process 0"))

    def result(self) -> R:
        """What the call gave, or raise what it raised."""
        if self.failed is not None:
            raise self.failed
        return self.results[0]


def _learnt(detector: Detector[Any, Any]) -> dict[str, Any]:
    return {
        "class": f"{type(detector).__module__}.{type(detector).__qualname__}",
        "network": network_digest(detector.network, detector.reader.volatile),
        "volatile": detector.reader.volatile,
        "settings": detector.settings,
        "state": detector.state,
        "settled": detector.settled,
        "scores": detector.validation_scores,
    }


def _take_over(learnt: Mapping[str, Mapping[str, Any]], detectors: Detectors) -> None:
    if list(learnt) != list(detectors):
        raise CannotBeSent(
            f"method: {list(detectors)} is not allowed; expected those of process 0, {list(learnt)}"
        )
    for name, detector in detectors.items():
        told = learnt[name]
        detector.reader.volatile = told["volatile"]
        mine = _learnt(detector)
        if (mine["class"], mine["network"]) != (told["class"], told["network"]):
            what = "class" if mine["class"] != told["class"] else "network"
            raise CannotBeSent(
                f"method: {name!r} has another {what} than in process 0; expected the same in all processes"
            )
        detector.settings, detector.state = told["settings"], told["state"]
        if told["settled"]:
            detector.has_learnt()
        if told["scores"] is not None:
            detector.validation = Validation.of(detector, told["scores"])

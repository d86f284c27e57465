"""Evidence of features that a search comes back to with every candidate."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ...evidence.evidence import Evidence
from ...evidence.fingerprint import Glance
from ...evidence.plan import Plan

KEPT = 2
"""Sets of features whose Evidence is kept: those that are learnt from and those that are scored."""


@dataclass(eq=False)
class _Made:
    """Evidence, and what it is of."""

    tensors: list[tuple[weakref.ref[Tensor], int]]
    glance: Glance
    evidence: Evidence

    def is_of(self, tensors: tuple[Tensor, ...], network: nn.Module) -> bool:
        """Whether it is of just these tensors, unchanged, and the network has not been touched."""
        same = len(tensors) == len(self.tensors) and all(
            seen() is tensor and version == _version(tensor)
            for (seen, version), tensor in zip(self.tensors, tensors, strict=True)
        )
        return same and self.glance.still_holds(network)


class Kept:
    """The Evidence last made, as long as the tensors are there that it was made of; a copy has none."""

    def __init__(self) -> None:
        self._made: list[_Made] = []

    def evidence(
        self,
        tensors: tuple[Tensor, ...],
        network: nn.Module,
        plan: Plan,
        wider: Callable[[], Plan],
        make: Callable[[Plan], Evidence],
    ) -> Evidence:
        """Evidence that has what ``plan`` asks for.

        Args:
            tensors: what it is made of.
            network: what they are of.
            plan: what is asked for now.
            wider: what may be asked for later, too; looked at when the same tensors come a second time.
            make: makes Evidence of them.
        """
        before = [made for made in self._made if made.is_of(tensors, network)]
        for made in before:
            if made.evidence.plan.covers(plan):
                return made.evidence
        glance = Glance(network)
        evidence = make(Plan.union([plan, wider()]) if before else plan)
        self._made = [made for made in self._made if made not in before][: KEPT - 1]
        watched = [(weakref.ref(tensor, self._forget), _version(tensor)) for tensor in tensors]
        self._made.insert(0, _Made(watched, glance, evidence))
        return evidence

    def _forget(self, gone: weakref.ref[Tensor]) -> None:
        self._made = [made for made in self._made if all(seen is not gone for seen, _ in made.tensors)]

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version

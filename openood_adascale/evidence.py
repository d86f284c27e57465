"""All that any candidate of a search needs to know of an image, without the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import functional as F
from .encode import Encoded, Perturbation
from .models import Head


@dataclass(frozen=True)
class Plan:
    """What a set of candidate settings asks of the images; kept small, so that Evidence is.

    An empty plan asks for the logits alone.
    """

    percentiles: tuple[float, float] | None = None
    """Lowest and highest percentile at which the scaling factor may be asked for."""
    k1: tuple[float, ...] = ()
    k2: tuple[float, ...] = ()
    """In percent of D."""
    perturbations: tuple[Perturbation, ...] = ()
    activations: bool = False
    """Keep a itself."""

    @staticmethod
    def union(plans: Iterable[Plan]) -> Plan:
        """What all of ``plans`` ask for together."""
        plans = list(plans)
        bounds = [p for plan in plans if plan.percentiles for p in plan.percentiles]
        return Plan(
            (min(bounds), max(bounds)) if bounds else None,
            tuple(sorted({k for plan in plans for k in plan.k1})),
            tuple(sorted({k for plan in plans for k in plan.k2})),
            tuple(dict.fromkeys(p for plan in plans for p in plan.perturbations)),
            any(plan.activations for plan in plans),
        )

    def covers(self, other: Plan) -> bool:
        """Whether Evidence made for this plan can answer ``other``."""
        return Plan.union([self, other]) == self


@dataclass
class Evidence:
    """Of N images: logits, and sums along the descending order of their activation (stable: of equal
    activations the first comes first).
    """

    plan: Plan
    head: Head
    logits: Tensor
    """(N, C) z."""
    total: Tensor | None = None
    """(N,) Σ a⁺."""
    kept: Tensor | None = None
    """(N, K) sums of the k largest a⁺ for k = ``first_kept``, ``first_kept`` + 1, …"""
    first_kept: int = 1
    size: int = 0
    """D."""
    shift: dict[tuple[Perturbation, float], Tensor] = field(default_factory=dict)
    """(N,) Q for each perturbation and k1."""
    correction: dict[tuple[Perturbation, float], Tensor] = field(default_factory=dict)
    """(N,) C_o for each perturbation and k2."""
    activation: Tensor | None = None
    """(N, D) a."""

    @classmethod
    def of(cls, encoded: Encoded, plan: Plan) -> Evidence:
        """Evidence of a batch that :func:`~openood_adascale.encode.encode` was asked ``plan.perturbations`` for."""
        activation = encoded.activation
        size = activation.shape[1]
        evidence = cls(plan, encoded.head, encoded.logits, size=size)
        if plan.activations:
            evidence.activation = activation
        if plan.percentiles is None:
            return evidence
        ordered, order = activation.sort(dim=1, descending=True, stable=True)
        low, high = (
            int(F.kept_count(torch.tensor(p, dtype=torch.float64), size)) for p in plan.percentiles[::-1]
        )
        rectified = ordered.relu()
        evidence.total = rectified.sum(1, dtype=F.statistics_dtype(activation.device))
        evidence.kept = F.running_sums(rectified[:, :high])[:, low - 1 :]
        evidence.first_kept = low
        for perturbation in plan.perturbations:
            perturbed = encoded.perturbed[perturbation]
            deepest = F.leading_count(max(plan.k1 + plan.k2), size)
            leading = order[:, :deepest]
            moved = perturbed.gather(1, leading)
            shifts = F.running_sums((moved - ordered[:, :deepest]).abs())
            corrections = F.running_sums(moved.relu())
            for k1 in plan.k1:
                evidence.shift[perturbation, k1] = shifts[:, F.leading_count(k1, size) - 1]
            for k2 in plan.k2:
                evidence.correction[perturbation, k2] = corrections[:, F.leading_count(k2, size) - 1]
        return evidence

    def __len__(self) -> int:
        return len(self.logits)

    def scaling_factor(self, percentile: Tensor) -> Tensor:
        """(N,) r for an (N,) percentile within the plan's."""
        if self.total is None or self.kept is None:
            raise ValueError("the Evidence was made without percentiles")
        counts = F.kept_count(percentile.to(self.total.dtype), self.size)
        # Rounding in the percentile can step over the plan's edge by one count.
        column = (counts - self.first_kept).clamp(0, self.kept.shape[1] - 1)
        kept = self.kept.gather(1, column[:, None]).squeeze(1)
        return F.factor_from_sums(self.total, kept)

    def oodness(self, perturbation: Perturbation, k1: float, k2: float, lmbda: float) -> Tensor:
        """(N,) Q'."""
        return F.oodness(self.shift[perturbation, k1], self.correction[perturbation, k2], lmbda)

    def __getitem__(self, rows: Tensor | slice) -> Evidence:
        return self._map(lambda tensor: tensor[rows])

    def cpu(self) -> Evidence:
        """The same in main memory, in storage of its own (a batch's slices would keep the whole batch alive)."""
        return self._map(lambda tensor: tensor.to("cpu", copy=True).contiguous())

    def _map(self, change) -> Evidence:
        maybe = lambda tensor: None if tensor is None else change(tensor)  # noqa: E731
        return Evidence(
            self.plan,
            self.head,
            change(self.logits),
            maybe(self.total),
            maybe(self.kept),
            self.first_kept,
            self.size,
            {key: change(value) for key, value in self.shift.items()},
            {key: change(value) for key, value in self.correction.items()},
            maybe(self.activation),
        )

    @staticmethod
    def cat(parts: Sequence[Evidence]) -> Evidence:
        """Batches of one network and one plan into one; the parts are emptied as it goes, to save memory."""
        first = parts[0]

        def join(name: str) -> Tensor | None:
            if getattr(first, name) is None:
                return None
            tensors = [getattr(part, name) for part in parts]
            for part in parts:
                setattr(part, name, None)
            return torch.cat(tensors)

        logits = join("logits")
        assert logits is not None
        return Evidence(
            first.plan,
            Head(*(tensor.to(logits.device) for tensor in first.head)),
            logits,
            join("total"),
            join("kept"),
            first.first_kept,
            first.size,
            {key: torch.cat([part.shift[key] for part in parts]) for key in first.shift},
            {key: torch.cat([part.correction[key] for part in parts]) for key in first.correction},
            join("activation"),
        )

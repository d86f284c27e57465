"""All that any candidate of a search needs to know of an image, without the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import equations
from ..errors import Unavailable
from .encode import Encoded
from .head import Head
from .plan import Perturbation, Plan

Part = str | tuple[str, Perturbation, float]


@dataclass(frozen=True)
class Evidence:
    """Of N images: logits, and sums along the descending order of their activation (stable: of equal
    activations the first comes first).

    What :attr:`plan` did not ask for is not there, and asking for it raises
    :class:`~openood_adascale.errors.Unavailable`.
    """

    plan: Plan
    head: Head
    size: int
    """D."""
    first_kept: int
    """The smallest k of which the sum of the k largest activations is kept."""
    parts: dict[Part, Tensor]
    """Tensors of N rows each, by name."""

    @classmethod
    def of(cls, encoded: Encoded, plan: Plan) -> Evidence:
        """Evidence of a batch that :func:`~.encode.encode` was asked ``plan.perturbations`` for."""
        activation = encoded.activation
        size, first_kept = activation.shape[1], 1
        parts: dict[Part, Tensor] = {"logits": encoded.logits, "prediction": encoded.prediction}
        if plan.activations:
            parts["activation"] = activation
        if plan.percentiles is not None or plan.perturbations:
            ordered, order = activation.sort(dim=1, descending=True, stable=True)
        if plan.percentiles is not None:
            first_kept, last_kept = (
                int(equations.kept_count(torch.tensor(p, dtype=torch.float64, device="cpu"), size))
                for p in plan.percentiles[::-1]
            )
            rectified = ordered.relu()
            parts["total"] = rectified.sum(1, dtype=equations.statistics_dtype(activation.device))
            parts["kept"] = equations.running_sums(rectified[:, :last_kept])[:, first_kept - 1 :]
        for perturbation in plan.perturbations:
            deepest = equations.leading_count(max(plan.k1 + plan.k2), size)
            moved = encoded.perturbed[perturbation].gather(1, order[:, :deepest])
            shifts = equations.running_sums((moved - ordered[:, :deepest]).abs())
            corrections = equations.running_sums(moved.relu())
            for name, sums, percents in (("shift", shifts, plan.k1), ("correction", corrections, plan.k2)):
                for k in percents:
                    parts[name, perturbation, k] = sums[:, equations.leading_count(k, size) - 1]
        return cls(plan, encoded.head, size, first_kept, parts)

    def __len__(self) -> int:
        return len(self.logits)

    def part(self, name: Part) -> Tensor:
        """A tensor of N rows.

        Raises:
            Unavailable: the plan did not ask for it.
        """
        if name not in self.parts:
            raise Unavailable(f"evidence: {name!r} is not there; its plan asked for {self.plan}")
        return self.parts[name]

    @property
    def logits(self) -> Tensor:
        """(N, C) z = W a + b."""
        return self.part("logits")

    @property
    def prediction(self) -> Tensor:
        """(N,) the network's own predicted classes."""
        return self.part("prediction")

    @property
    def activation(self) -> Tensor:
        """(N, D) a."""
        return self.part("activation")

    def scaling_factor(self, percentile: Tensor | float) -> Tensor:
        """(N,) r for an (N,) percentile, or one for all, within the plan's."""
        total, kept = self.part("total"), self.part("kept")
        percentiles = torch.as_tensor(percentile, dtype=total.dtype, device=total.device).expand_as(total)
        counts = equations.kept_count(percentiles, self.size)
        # Rounding in the percentile can step over the plan's edge by one count.
        column = (counts - self.first_kept).clamp(0, kept.shape[1] - 1)
        return equations.factor_from_sums(total, kept.gather(1, column[:, None]).squeeze(1))

    def oodness(self, perturbation: Perturbation, k1: float, k2: float, lmbda: float) -> Tensor:
        """(N,) Q'."""
        shift, correction = (
            self.part(("shift", perturbation, k1)),
            self.part(("correction", perturbation, k2)),
        )
        return equations.oodness(shift, correction, lmbda)

    def __getitem__(self, rows: Tensor | slice) -> Evidence:
        return self._map(lambda tensor: tensor[rows])

    def cpu(self) -> Evidence:
        """The same in main memory, in storage of its own (a batch's slices would keep the whole batch alive)."""
        return self._map(lambda tensor: tensor.to("cpu", copy=True).contiguous())

    def to(self, device: torch.device) -> Evidence:
        """The same on ``device``."""
        moved = self._map(lambda tensor: tensor.to(device))
        return replace(moved, head=Head(*(tensor.to(device) for tensor in self.head)))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Evidence:
        parts = {name: change(tensor) for name, tensor in self.parts.items()}
        return Evidence(self.plan, self.head, self.size, self.first_kept, parts)

    @staticmethod
    def cat(batches: Sequence[Evidence]) -> Evidence:
        """Batches of one network and one plan into one; they are emptied as it goes, to save memory."""
        first = batches[0]
        parts: dict[Part, Tensor] = {}
        for name in list(first.parts):
            parts[name] = torch.cat([batch.parts.pop(name) for batch in batches])
        head = Head(*(tensor.to(parts["logits"].device) for tensor in first.head))
        return Evidence(first.plan, head, first.size, first.first_kept, parts)

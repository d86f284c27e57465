"""Feature requests, features, and feature statistics: the quantities that scores are computed from.

A request lists the features that a set of settings needs. Requests are united, so that one pass serves many methods and
all candidates of a search. The statistics that answer it need no network any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import functional
from ..errors import MissingFeatureError
from .head import LinearHead


@dataclass(frozen=True)
class Perturbation:
    """Perturbation of an image (Algorithm 1, lines 3 to 6).

    Args:
        pixels: Choice of the perturbed channel values, ``trivial``, ``salient``, ``random`` or ``all``.
        o: Fraction of the channel values that are perturbed.
        epsilon: Step size ε in units of the normalised image.
        seed: Seed of ``random`` pixels.
    """

    pixels: str
    o: float
    epsilon: float
    seed: int = 0

    def __post_init__(self) -> None:
        # Irrelevant settings must not make two perturbations of one.
        if self.pixels != "random":
            object.__setattr__(self, "seed", 0)
        if self.pixels == "all":
            object.__setattr__(self, "o", 1.0)

    @property
    def needs_gradient(self) -> bool:
        """Dependence on the gradient with respect to the image."""
        return self.pixels != "random"


@dataclass(frozen=True)
class FeatureRequest:
    """Union of the quantities that candidate settings need; an empty request asks for the logits alone.

    Args:
        percentiles: Lowest and highest percentile of the scaling factor r.
        k1: Percentages of the activations in the shift Q.
        k2: Percentages of the activations in the correction C_o.
        perturbations: Perturbed inputs, one more forward pass each.
        activations: Keep the activations a themselves.
    """

    percentiles: tuple[float, float] | None = None
    k1: tuple[float, ...] = ()
    k2: tuple[float, ...] = ()
    perturbations: tuple[Perturbation, ...] = ()
    activations: bool = False

    @staticmethod
    def union(requests: Iterable[FeatureRequest]) -> FeatureRequest:
        """Return the request that covers all of ``requests``."""
        requests = list(requests)
        bounds = [p for request in requests if request.percentiles for p in request.percentiles]
        return FeatureRequest(
            (min(bounds), max(bounds)) if bounds else None,
            tuple(sorted({k for request in requests for k in request.k1})),
            tuple(sorted({k for request in requests for k in request.k2})),
            tuple(dict.fromkeys(p for request in requests for p in request.perturbations)),
            any(request.activations for request in requests),
        )

    def covers(self, other: FeatureRequest) -> bool:
        """Return True if statistics for this request answer ``other``."""
        return FeatureRequest.union([self, other]) == FeatureRequest.union([self])


class Features(NamedTuple):
    """Features of B images."""

    logits: Tensor
    """(B, C) z = W a + b, at least float32."""
    prediction: Tensor
    """(B,) int64 predicted classes of the network."""
    activation: Tensor
    """(B, D) penultimate activation a, at least float32."""
    perturbed: dict[Perturbation, Tensor]
    """(B, D) activation a_ε of each perturbed input."""
    head: LinearHead


Part = str | tuple[str, Perturbation, float]
_BLOCK = 2**22  # activations in a block


@dataclass(frozen=True)
class FeatureStatistics:
    """Logits of N images, and running sums along the descending order of their activations.

    The order is stable: of equal activations the first one comes first. Anything that ``request`` does not include
    raises :class:`~openood_adascale.errors.MissingFeatureError`.
    """

    request: FeatureRequest
    head: LinearHead
    size: int
    """D."""
    first_kept: int
    """Smallest k whose sum of the k largest activations is included."""
    parts: dict[Part, Tensor]
    """Tensors of N rows by name."""

    @classmethod
    @torch.no_grad()
    def from_features(cls, features: Features, request: FeatureRequest) -> FeatureStatistics:
        """Compute the statistics of a batch whose features include all of ``request.perturbations``."""
        activation = features.activation
        size, first_kept = activation.shape[1], 1
        parts: dict[Part, Tensor] = {"logits": features.logits, "prediction": features.prediction}
        if request.activations:
            parts["activation"] = activation
        if request.percentiles is not None or request.perturbations:
            ordered, order = activation.sort(dim=1, descending=True, stable=True)
        if request.percentiles is not None:
            first_kept, last_kept = (
                int(functional.kept_count(torch.tensor(p, dtype=torch.float64, device="cpu"), size))
                for p in request.percentiles[::-1]
            )
            rectified = ordered.relu()
            parts["total"] = rectified.sum(1, dtype=functional.statistics_dtype(activation.device))
            parts["kept"] = functional.running_sums(rectified[:, :last_kept])[:, first_kept - 1 :]
        for perturbation in request.perturbations:
            deepest = functional.leading_count(max(request.k1 + request.k2), size)
            moved = features.perturbed[perturbation].gather(1, order[:, :deepest])
            shifts = functional.running_sums((moved - ordered[:, :deepest]).abs())
            corrections = functional.running_sums(moved.relu())
            for k in request.k1:
                parts["shift", perturbation, k] = shifts[:, functional.leading_count(k, size) - 1]
            for k in request.k2:
                parts["correction", perturbation, k] = corrections[:, functional.leading_count(k, size) - 1]
        return cls(request, features.head, size, first_kept, parts)

    def __len__(self) -> int:
        return len(self.logits)

    def part(self, name: Part) -> Tensor:
        """Return a tensor of N rows.

        Raises:
            MissingFeatureError: The request does not include it.
        """
        if name not in self.parts:
            raise MissingFeatureError(f"statistics: {name!r} is missing; the request was {self.request}")
        return self.parts[name]

    @property
    def logits(self) -> Tensor:
        """(N, C) z = W a + b."""
        return self.part("logits")

    @property
    def prediction(self) -> Tensor:
        """(N,) predicted classes of the network itself."""
        return self.part("prediction")

    @property
    def activation(self) -> Tensor:
        """(N, D) a."""
        return self.part("activation")

    def scaling_factor(self, percentile: Tensor | float) -> Tensor:
        """Return (N,) scaling factors r.

        Args:
            percentile: (N,) percentiles, or one for all, within those of the request.
        """
        total, kept = self.part("total"), self.part("kept")
        percentiles = torch.as_tensor(percentile, dtype=total.dtype, device=total.device).expand_as(total)
        counts = functional.kept_count(percentiles, self.size)
        # Rounding in the percentile can step over the request's edge by one count.
        column = (counts - self.first_kept).clamp(0, kept.shape[1] - 1)
        return functional.factor_from_sums(total, kept.gather(1, column[:, None]).squeeze(1))

    def oodness(self, perturbation: Perturbation, k1: float, k2: float, lmbda: float) -> Tensor:
        """Return (N,) Q' = λ·Q + C_o.

        Args:
            perturbation: One of the request's.
            k1: One of the request's.
            k2: One of the request's.
            lmbda: λ ≥ 0.
        """
        shift = self.part(("shift", perturbation, k1))
        correction = self.part(("correction", perturbation, k2))
        return functional.oodness(shift, correction, lmbda)

    def head_logits(self, shaped: Tensor) -> Tensor:
        """Return the head's (N, C) output on (N, D) shaped activations, in their dtype."""
        return nn.functional.linear(shaped, self.head.weight.to(shaped), self.head.bias.to(shaped))

    def blocks(self) -> Iterator[FeatureStatistics]:
        """Yield the statistics in blocks of rows, so that a method takes little memory for many images."""
        rows = max(1, _BLOCK // self.size)
        return (self[start : start + rows] for start in range(0, len(self), rows))

    def __getitem__(self, rows: Tensor | slice) -> FeatureStatistics:
        return self._map(lambda tensor: tensor[rows])

    def cpu(self) -> FeatureStatistics:
        """Return a copy in main memory (slices of a batch would keep the whole batch alive)."""
        return self._map(lambda tensor: tensor.to("cpu", copy=True).contiguous())

    def to(self, device: torch.device) -> FeatureStatistics:
        """Return the statistics on ``device``."""
        return replace(self._map(lambda tensor: tensor.to(device)), head=self.head.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> FeatureStatistics:
        return replace(self, parts={name: change(tensor) for name, tensor in self.parts.items()})

    @staticmethod
    def cat(batches: Sequence[FeatureStatistics]) -> FeatureStatistics:
        """Concatenate batches of one network and one request; they are emptied on the way to save memory."""
        first = batches[0]
        parts = {name: torch.cat([batch.parts.pop(name) for batch in batches]) for name in list(first.parts)}
        return replace(first, parts=parts, head=first.head.to(parts["logits"].device))

"""What a set of settings asks of an image, and how the network is to be run. Imports no room of this package."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PRECISIONS = ("float32", "bfloat16", "float16", "auto")
MEMORY_FORMATS = ("auto", "contiguous", "channels_last")
BATCHES = ("loader", "auto")


@dataclass(frozen=True)
class Execution:
    """How the network is run."""

    precision: str = "float32"
    """One of :data:`PRECISIONS`, of a float32 network's convolutions and products; ``auto`` is the fastest that its
    device has arithmetic for. The head and everything after it are float32 at least."""
    memory_format: str = "auto"
    """One of :data:`MEMORY_FORMATS`, of image batches (B, channels, height, width); ``auto`` is the faster."""
    batch: str | int = "loader"
    """How many images go through the network at a time: ``loader`` (as they come, on a CPU in parts that its caches hold),
    ``auto`` (the largest number that pays, found by trying), or a number. Fewer where a GPU's memory is too small."""


@dataclass(frozen=True)
class Perturbation:
    """Which channel values of an image are moved, and how far (Algorithm 1)."""

    pixels: str
    o: float
    epsilon: float
    seed: int = 0

    def __post_init__(self) -> None:
        # What a setting does not depend on must not make two perturbations of one.
        if self.pixels != "random":
            object.__setattr__(self, "seed", 0)
        if self.pixels == "all":
            object.__setattr__(self, "o", 1.0)


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
        return Plan.union([self, other]) == Plan.union([self])

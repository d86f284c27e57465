"""AdaSCALE (ICML 2026, arXiv 2503.08023), variants A and L."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from .. import equations
from ..evidence.evidence import Evidence
from ..evidence.plan import Perturbation, Plan
from .learning import LearningDetector
from .settings import Settings, number_within, one_of, percentile_pair, whole_number


@dataclass(frozen=True)
class AdaSCALESettings(Settings):
    """AdaSCALE's hyperparameters, named as the paper names them.

    >>> AdaSCALESettings(percentile=[60, 85]).replace(variant="L").percentile
    (60.0, 85.0)
    >>> AdaSCALESettings(k1=0)
    Traceback (most recent call last):
    openood_adascale.errors.SettingError: k1: 0 is not allowed; expected a number in (0, 100]

    Raises:
        SettingError: a value out of range, when made.
    """

    only_judge: ClassVar[frozenset[str]] = frozenset({"variant", "percentile"})

    variant: str = "A"
    """``A`` scales the activation by exp(r), ``L`` the logits by r²."""
    percentile: tuple[float, float] = (80.0, 85.0)
    """(p_min, p_max) in percent, 0 < p_min <= p_max < 100."""
    k1: float = 1.0
    """Percent of the activations, the largest, in Q; in (0, 100]."""
    k2: float = 5.0
    """Percent of the activations, the largest, in C_o; in (0, 100]."""
    lmbda: float = 10.0
    """λ >= 0 of Q' = λ·Q + C_o."""
    o: float = 0.05
    """Fraction of the channel values that are perturbed, in (0, 1]."""
    epsilon: float = 0.5
    """ε > 0, how far they move, in units of the normalised image."""
    pixels: str = "trivial"
    """Which: ``trivial`` (smallest gradient), ``salient`` (largest), ``random`` (drawn by the seed), ``all``."""
    num_samples: int | None = None
    """How many of the validation images enter the CDF; None is all."""
    seed: int = 0
    """Of the choice of ``num_samples`` images and of ``random`` pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("variant", one_of("variant", self.variant, equations.VARIANTS))
        self._set("pixels", one_of("pixels", self.pixels, equations.PIXELS))
        self._set("percentile", percentile_pair("percentile", self.percentile))
        self._set("k1", number_within("k1", self.k1, 0, 100, brackets="(]"))
        self._set("k2", number_within("k2", self.k2, 0, 100, brackets="(]"))
        self._set("lmbda", number_within("lmbda", self.lmbda, 0, brackets="[)"))
        self._set("o", number_within("o", self.o, 0, 1, brackets="(]"))
        self._set("epsilon", number_within("epsilon", self.epsilon, 0))
        if self.num_samples is not None:
            self._set("num_samples", whole_number("num_samples", self.num_samples, 1))
        self._set("seed", whole_number("seed", self.seed, 0))

    @property
    def perturbation(self) -> Perturbation:
        """The part of the settings that needs a pass of its own."""
        return Perturbation(self.pixels, self.o, self.epsilon, self.seed)

    def plan(self) -> Plan:
        return Plan(self.percentile, (self.k1,), (self.k2,), (self.perturbation,))

    def learnt_with(self) -> dict[str, Any]:
        learnt = super().learnt_with()
        # What a setting does not enter must not ask for another fit.
        if self.pixels == "all":
            del learnt["o"]
        if self.pixels != "random" and self.num_samples is None:
            del learnt["seed"]
        return learnt

    def warn_if_doubtful(self) -> bool:
        """OpenOOD's own yml files name k1 and k2 the other way round; warn where that seems to be the case."""
        if self.k1 > self.k2:
            warnings.warn(
                f"k1 = {self.k1:g} is larger than k2 = {self.k2:g}. Here k1 belongs to the shift Q and k2 to the "
                "correction C_o, as in the paper (1 and 5). OpenOOD's adascale_a.yml and adascale_l.yml name them "
                "the other way round: exchange the two if these settings come from there",
                UserWarning,
                stacklevel=3,
            )
        return self.k1 > self.k2


class AdaSCALE(LearningDetector[AdaSCALESettings, Tensor]):
    """AdaSCALE (Algorithm 1 of the paper), variants A and L.

    >>> detector = AdaSCALE(network, variant="A", percentile=(80, 85)).fit(val_loader)
    >>> scores = detector.score(images)                                  # larger is more in-distribution
    >>> unknown = detector.is_ood(images, tpr=0.95)                      # of (N,) images, as bool
    >>> found = detector.search(val_loader, ood_val_loader)              # one pass; then fitted with the best
    >>> len(found.table), found.settings == detector.settings
    (36, True)
    >>> detector.save("detector.safetensors")
    >>> AdaSCALE.load("detector.safetensors", network).state.equal(detector.state)
    True

    Its :attr:`state` is the sorted Q' of the validation images, (n_val,) float64.
    """

    settings_class = AdaSCALESettings
    default_sweep: ClassVar[Mapping[str, Sequence[Any]]] = {
        "percentile_list": [
            [low, high]
            for low in (60, 65, 70, 75, 80, 85, 90, 95)
            for high in (65, 70, 75, 80, 85, 90, 95, 99)
            if low < high
        ]
    }

    def learn(self, evidence: Evidence, settings: AdaSCALESettings) -> Tensor:
        """Sorted Q' of ``num_samples`` of the images: the CDF F (eq. of the adaptive percentile)."""
        values = _oodness(evidence, settings)
        if settings.num_samples is not None and settings.num_samples < len(values):
            # Counted along the energy, so that the choice is of images, whatever the loader's order.
            order = equations.energy(evidence.logits).argsort(stable=True)
            generator = torch.Generator("cpu").manual_seed(settings.seed)
            chosen = torch.randperm(len(values), generator=generator, device="cpu")[: settings.num_samples]
            values = values[order[chosen.to(order.device)]]
        return values.sort().values.cpu()

    def judge(self, evidence: Evidence, settings: AdaSCALESettings, state: Tensor) -> tuple[Tensor, Tensor]:
        factor = evidence.scaling_factor(_percentiles(evidence, settings, state))
        if settings.variant == "A":
            logits = equations.scale_activation_logits(evidence.logits, evidence.head.bias, factor)
        else:
            logits = equations.scale_logits(evidence.logits, factor)
        return logits.argmax(1), equations.energy(logits)

    def percentiles(self, images: Tensor) -> Tensor:
        """(B,) adaptive percentiles p of (B, ...) images, in percent; low where an image moves much."""
        return self.percentiles_of(self._read(images))

    def percentiles_of(self, evidence: Evidence) -> Tensor:
        """:meth:`percentiles` of (N,) images whose Evidence is there already."""
        return _percentiles(evidence, self.settings, cast(Tensor, self.state))


def _percentiles(evidence: Evidence, settings: AdaSCALESettings, state: Tensor) -> Tensor:
    values = _oodness(evidence, settings)
    cdf = equations.empirical_cdf(state.to(values.device, values.dtype), values)
    return equations.adaptive_percentile(cdf, *settings.percentile)


def _oodness(evidence: Evidence, settings: AdaSCALESettings) -> Tensor:
    return evidence.oodness(settings.perturbation, settings.k1, settings.k2, settings.lmbda)

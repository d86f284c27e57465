"""AdaSCALE (ICML 2026, arXiv 2503.08023), variants A and L."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack, override

from .. import functional
from ..features.statistics import FeatureRequest, FeatureStatistics, Perturbation
from .base import FittedDetector
from .settings import (
    InferenceOptions,
    Settings,
    number_within,
    one_of,
    percentile_pair,
    setting,
    whole_number,
)


@dataclass(frozen=True)
class AdaSCALESettings(Settings):
    """Settings of AdaSCALE, named as in the paper; see :class:`AdaSCALE`.

    >>> AdaSCALESettings(percentile=[60, 85]).replace(variant="L").percentile
    (60.0, 85.0)
    >>> AdaSCALESettings(k1=0)
    Traceback (most recent call last):
    openood_adascale.errors.SettingError: k1: 0 is not allowed; expected a number in (0, 100]

    Raises:
        SettingError: A value is out of range.
    """

    score_only: ClassVar[frozenset[str]] = frozenset({"variant", "percentile"})

    variant: str = setting("A", one_of, functional.VARIANTS)
    percentile: tuple[float, float] = setting((80.0, 85.0), percentile_pair)
    k1: float = setting(1.0, number_within, "(0, 100]")
    k2: float = setting(5.0, number_within, "(0, 100]")
    lmbda: float = setting(10.0, number_within, "[0, inf)")
    o: float = setting(0.05, number_within, "(0, 1]")
    epsilon: float = setting(0.5, number_within, "(0, inf)")
    pixels: str = setting("trivial", one_of, functional.PIXELS)
    num_samples: int | None = setting(None, whole_number, 1)
    seed: int = setting(0, whole_number, 0)

    @property
    def perturbation(self) -> Perturbation:
        """Perturbation of the images, the part of the settings that needs forward passes of its own."""
        return Perturbation(self.pixels, self.o, self.epsilon, self.seed)

    @override
    def request(self) -> FeatureRequest:
        return FeatureRequest(self.percentile, (self.k1,), (self.k2,), (self.perturbation,))

    @override
    def doubts(self) -> list[str]:
        found = super().doubts()
        if self.k1 > self.k2:
            found.append(
                f"k1 = {self.k1:g} is larger than k2 = {self.k2:g}. Here k1 belongs to the shift Q and k2 to the "
                "correction C_o, as in the paper (1 and 5). OpenOOD's adascale_a.yml and adascale_l.yml name them "
                "the other way round: exchange the two if these settings come from there"
            )
        return found


class AdaSCALE(FittedDetector[AdaSCALESettings, Tensor]):
    """AdaSCALE (Algorithm 1 of the paper), variants A and L.

    Each image is perturbed a little. The shift of its strongest activations, compared with those of ID validation images,
    sets a percentile of its own, at which activations (A) or logits (L) are scaled before the energy is taken.

    >>> detector = AdaSCALE(network, variant="A", percentile=(80, 85)).fit(val_loader)
    >>> scores = detector.score(images)                                  # larger is more in-distribution
    >>> ood = detector.is_ood(images, tpr=0.95)                          # (N,) bool
    >>> found = detector.search(val_loader, ood_val_loader)              # one pass; then fitted with the best settings
    >>> len(found.results), found.best_settings == detector.settings
    (36, True)
    >>> detector.save("detector.safetensors")
    >>> AdaSCALE.load("detector.safetensors", network).state.equal(detector.state)
    True

    The fitted :attr:`state` is the sorted Q' of the validation images, (n_val,) float64.

    Args:
        network: Classifier that returns (B, C) logits and ends in a linear layer.
        variant: ``"A"`` scales the activation by exp(r), ``"L"`` the logits by r².
        percentile: (p_min, p_max) in percent, 0 < p_min <= p_max < 100.
        k1: Percentage of the activations, the largest ones, in the shift Q; in (0, 100].
        k2: Percentage of the activations, the largest ones, in the correction C_o; in (0, 100].
        lmbda: λ >= 0 in Q' = λ·Q + C_o.
        o: Fraction of the channel values that are perturbed, in (0, 1].
        epsilon: Step size ε > 0 in units of the normalised image.
        pixels: Perturbed channel values: ``"trivial"`` (smallest gradient), ``"salient"`` (largest), ``"random"`` (pixels
            and signs drawn from the seed, no gradient) or ``"all"``.
        num_samples: Number of validation images in the CDF (default: all).
        seed: Seed of the choice of ``num_samples`` images and of ``random`` pixels.
        inference: ``precision``, ``memory_format`` and ``forward_batch_size``; see :class:`~.settings.Settings`.

    Raises:
        SettingError: A setting is out of range.
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

    def __init__(
        self,
        network: nn.Module,
        *,
        variant: str = "A",
        percentile: tuple[float, float] = (80.0, 85.0),
        k1: float = 1.0,
        k2: float = 5.0,
        lmbda: float = 10.0,
        o: float = 0.05,
        epsilon: float = 0.5,
        pixels: str = "trivial",
        num_samples: int | None = None,
        seed: int = 0,
        **inference: Unpack[InferenceOptions],
    ) -> None:
        super().__init__(
            network, variant=variant, percentile=percentile, k1=k1, k2=k2, lmbda=lmbda, o=o, epsilon=epsilon,
            pixels=pixels, num_samples=num_samples, seed=seed, **inference,
        )  # fmt: skip

    def fit_state(self, statistics: FeatureStatistics, settings: AdaSCALESettings) -> Tensor:
        """Return the sorted Q' of ``num_samples`` of the images, the support of the CDF F."""
        values = _oodness(statistics, settings)
        if settings.num_samples is not None and settings.num_samples < len(values):
            # Images are numbered by their energy, so that the choice does not depend on the loader's order.
            order = functional.energy(statistics.logits).argsort(stable=True)
            generator = torch.Generator("cpu").manual_seed(settings.seed)
            chosen = torch.randperm(len(values), generator=generator, device="cpu")[: settings.num_samples]
            values = values[order[chosen.to(order.device)]]
        return values.sort().values.cpu()

    @override
    def score_statistics(
        self, statistics: FeatureStatistics, settings: AdaSCALESettings, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        factor = statistics.scaling_factor(_percentiles(statistics, settings, state))
        if settings.variant == "A":
            logits = functional.scale_activation_logits(statistics.logits, statistics.head.bias, factor)
        else:
            logits = functional.scale_logits(statistics.logits, factor)
        return logits.argmax(1), functional.energy(logits)

    def percentiles(self, images: Tensor) -> Tensor:
        """Return (B,) adaptive percentiles p in percent; low for images that move much.

        Args:
            images: (B, ...) floating, normalised as the network expects.
        """
        self.require_fitted()
        settings = self.settings
        return self.percentiles_from(
            self.extractor.statistics(images, settings.request(), settings.inference)
        )

    def percentiles_from(self, statistics: FeatureStatistics) -> Tensor:
        """Return (N,) adaptive percentiles p in percent from feature statistics."""
        return _percentiles(statistics, self.settings, cast(Tensor, self.state))

    def oodness_from(self, statistics: FeatureStatistics) -> Tensor:
        """Return (N,) Q' from feature statistics."""
        return _oodness(statistics, self.settings)


def _percentiles(statistics: FeatureStatistics, settings: AdaSCALESettings, state: Tensor) -> Tensor:
    values = _oodness(statistics, settings)
    cdf = functional.empirical_cdf(state.to(values.device, values.dtype), values)
    return functional.adaptive_percentile(cdf, *settings.percentile)


def _oodness(statistics: FeatureStatistics, settings: AdaSCALESettings) -> Tensor:
    return statistics.oodness(settings.perturbation, settings.k1, settings.k2, settings.lmbda)

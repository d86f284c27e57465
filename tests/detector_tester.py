"""Checks that every method must pass, in the manner of torchmetrics' testers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import reference
import torch
from networks import make_loader
from torch import Tensor, nn

from openood_adascale.detectors.base import Detector, StreamingDetector
from openood_adascale.detectors.registry import METHODS
from openood_adascale.features.extractor import FeatureExtractor, InferenceSettings


@dataclass(frozen=True)
class Features:
    """Features of fitting and scored images, in NumPy float64."""

    fit: np.ndarray
    fit_perturbed: np.ndarray
    a: np.ndarray
    perturbed: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @property
    def head(self) -> tuple[np.ndarray, np.ndarray]:
        return self.weight, self.bias


Reference = Callable[[Features, Any, Any], np.ndarray]


def _adascale(features: Features, settings: Any, state: Any) -> np.ndarray:
    return reference.scores(
        features.fit, features.fit_perturbed, features.a, features.perturbed, *features.head,
        variant=settings.variant, percentile_pair=settings.percentile, k1=settings.k1, k2=settings.k2,
        lmbda=settings.lmbda,
    )[0]  # fmt: skip


def _bfact(features: Features, settings: Any, state: Any) -> np.ndarray:
    cutoff = np.percentile(features.fit, settings.percentile)
    np.testing.assert_allclose(float(state), cutoff, rtol=2**-15)  # the histogram's promise
    return reference.bfact(features.a, *features.head, float(state), settings.order)


def _optfs(features: Features, settings: Any, state: Any) -> np.ndarray:
    edges, theta = (state[name].double().numpy() for name in ("edges", "theta"))
    ends = np.percentile(features.fit, settings.percentile)
    np.testing.assert_allclose(
        edges, np.linspace(*ends, settings.bins + 1), rtol=0, atol=2**-14 * np.abs(ends).max()
    )
    # θ is exact for the edges that are used.
    want = reference.optfs_theta(features.fit, *features.head, edges)
    np.testing.assert_allclose(theta, want, rtol=1e-4, atol=1e-3)
    return reference.optfs(features.a, *features.head, edges, theta, settings.score)


REFERENCES: dict[str, Reference] = {
    "msp": lambda features, settings, state: reference.msp(features.a, *features.head),
    "ebo": lambda features, settings, state: reference.energy(features.a, *features.head),
    "scale": lambda f, settings, state: reference.scale(f.a, *f.head, settings.percentile),
    "lts": lambda f, settings, state: reference.lts(f.a, *f.head, settings.percentile),
    "bfact": _bfact,
    "optfs": _optfs,
    "adascale": _adascale,
    "adascale_logit": _adascale,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "optfs": {"bins": 20}, "bfact": {"percentile": 80}, "adascale": {"percentile": (60, 90), "k1": 5, "k2": 20},
    "adascale_logit": {"percentile": (60, 90), "k1": 5, "k2": 20},
}  # fmt: skip
"""Settings with which small networks show something."""
SWEEPS: dict[str, dict[str, list[Any]]] = {
    "scale": {"percentile_list": [70, 90]}, "lts": {"percentile_list": [70, 90]}, "bfact": {"order_list": [1, 3]},
    "optfs": {"bins_list": [5, 50], "score_list": ["vanilla", "energy"]},
    "adascale": {"percentile_list": [[60, 70], [80, 95]], "k1_list": [5, 15]},
    "adascale_logit": {"percentile_list": [[60, 70], [80, 95]], "k1_list": [5, 15]},
}  # fmt: skip
"""A sweep of each method that has any settings to search."""


@dataclass
class DetectorTester:
    """A registered method with its NumPy reference.

    Args:
        name: Name in the registry.
        settings: Settings that replace :data:`SETTINGS`.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self, network: nn.Module, **settings: Any) -> Detector[Any, Any]:
        method = METHODS[self.name]
        chosen = {**method.defaults, **SETTINGS.get(self.name, {}), **self.settings, **settings}
        return method.detector(network, **chosen)

    def fit(self, network: nn.Module, images: Tensor, batch_size: int = 16, **settings: Any) -> Any:
        return self.make(network, **settings).fit(make_loader(images, batch_size), progress=False)

    @property
    def sweep(self) -> dict[str, list[Any]]:
        return SWEEPS[self.name]

    def search(self, detector: Any, id_images: Tensor, ood_images: Tensor) -> Any:
        """Search with a small sweep; methods that are fitted on training images are fitted on ``id_images``."""
        loaders = make_loader(id_images), make_loader(ood_images)
        more = {"fit_loader": loaders[0]} if isinstance(detector, StreamingDetector) else {}
        return detector.search(*loaders, self.sweep, progress=False, **more)

    def expected(self, detector: Detector[Any, Any], fit_images: Tensor, images: Tensor) -> np.ndarray:
        """Reference scores of a fitted detector, given the features that its network yields."""
        features = features_of(detector, fit_images, images)
        return REFERENCES[self.name](features, detector.settings, detector.state)

    def assert_agrees(
        self, detector: Detector[Any, Any], fit_images: Tensor, images: Tensor, rtol: float = 1e-5
    ) -> None:
        """Compare scores with the reference."""
        want = self.expected(detector, fit_images, images)
        np.testing.assert_allclose(detector.score(images).numpy(), want, rtol=rtol, atol=1e-6)


def features_of(detector: Detector[Any, Any], fit_images: Tensor, images: Tensor) -> Features:
    settings = detector.settings
    perturbation = getattr(settings, "perturbation", None)
    extractor = FeatureExtractor(detector.network)
    inference = InferenceSettings(settings.precision, settings.memory_format, settings.forward_batch_size)
    found = []
    for batch in (fit_images, images):
        got = extractor.extract(batch, [perturbation] if perturbation else [], inference)
        found += [got.activation, got.perturbed.get(perturbation, got.activation)]
    head = got.head
    return Features(*(tensor.double().numpy() for tensor in (*found, head.weight, head.bias)))


def snapshot(network: nn.Module) -> Any:
    """Everything about a network that a detector must leave alone, as a value to compare."""
    return (
        [
            (name, m.training, list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks))
            for name, m in network.named_modules()
        ],
        [
            (name, id(p), p.requires_grad, None if p.grad is None else p.grad.tolist())
            for name, p in network.named_parameters()
        ],
        {name: value.tolist() for name, value in network.state_dict().items()},
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
    )

"""The encoder: features of an image as one row, as pytorch-ood's benchmarks and searches take them."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NotFiniteError
from ...features.extractor import FLOAT32, FeatureExtractor, InferenceSettings
from ...features.head import LinearHead
from ...features.statistics import FeatureRequest, Features, FeatureStatistics, Perturbation

ROWS = 4096
"""Rows that are scored at a time, so that features of many images need little more memory."""
# pytorch-ood shares a pass between detectors that have the same encoder object.
_extractors: weakref.WeakValueDictionary[int, FeatureExtractor] = weakref.WeakValueDictionary()
_encoders: weakref.WeakValueDictionary[Any, Encoder] = weakref.WeakValueDictionary()


class Encoder:
    """Encoder of images to the penultimate activation, followed by those of perturbed inputs.

    The network is run in eval mode on its own device, and left as it was found.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        perturbations: tuple[Perturbation, ...],
        inference: InferenceSettings,
    ) -> None:
        self.extractor, self.perturbations, self.inference = extractor, perturbations, inference
        # pytorch-ood names the files of its cache after the encoder's __qualname__.
        self.__qualname__ = f"Encoder_{_marker((perturbations, inference)):.0f}"

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of (B, ...) images: (B, D) activations a, or with P perturbations (B, D + P·(1 + D)).

        For each perturbation, a number that identifies it precedes its activations a_ε.
        """
        features = self.extractor.extract(images, self.perturbations, self.inference)
        columns = [features.activation]
        for perturbation, moved in features.perturbed.items():
            columns += [moved.new_full((len(moved), 1), _marker(perturbation)), moved]
        return torch.cat(columns, dim=1)


def penultimate_encoder(network: nn.Module) -> Encoder:
    """Return the encoder of images to (B, D) penultimate activations; all detectors of a network share it.

    >>> from pytorch_ood.detector import KNN
    >>> knn = KNN(penultimate_encoder(network), k=5).fit(train_loader)

    Args:
        network: Classifier that ends in a linear layer.
    """
    return encoder_of(extractor_of(network), (), FLOAT32)


def extractor_of(network: nn.Module) -> FeatureExtractor:
    """Return the feature extractor that all detectors of ``network`` share."""
    found = _extractors.get(id(network))
    if found is None or found.network is not network:
        found = _extractors[id(network)] = FeatureExtractor(network)
    return found


def encoder_of(
    extractor: FeatureExtractor, perturbations: Sequence[Perturbation], inference: InferenceSettings
) -> Encoder:
    """Return the encoder that all detectors with these arguments share."""
    key = (id(extractor), tuple(perturbations), inference)
    found = _encoders.get(key)
    if found is None or found.extractor is not extractor:
        found = _encoders[key] = Encoder(extractor, tuple(perturbations), inference)
    return found


def statistics_of(
    features: Tensor, extractor: FeatureExtractor, request: FeatureRequest
) -> Iterator[FeatureStatistics]:
    """Yield the feature statistics of an :class:`Encoder`'s output in blocks of :data:`ROWS`; errors name bad rows."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        given = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"features: {given} is not allowed; expected a floating tensor")
    split, head = extractor.split, extractor.head
    if split is None or head is None or split.layer_name is None:
        raise RuntimeError(
            f"model: the head of {type(extractor.network).__name__} is not known before an image has gone through it; "
            "call encoder(images) or predict(images) once"
        )
    if bad := (~features.flatten(1).isfinite().all(1)).nonzero().flatten().tolist():
        raise NotFiniteError("features", bad)
    with torch.no_grad(), torch.autocast(head.weight.device.type, enabled=False):
        for block in features.split(ROWS):
            yield _statistics(block.to(head.weight.device), head, request)


def _statistics(features: Tensor, head: LinearHead, request: FeatureRequest) -> FeatureStatistics:
    size = head.weight.shape[1]
    count, rest = divmod(features.shape[-1] - size, 1 + size)
    if features.ndim != 2 or rest or count < 0:
        raise ValueError(
            f"features: shape {tuple(features.shape)} is not allowed; expected (N, {size}) penultimate activations, or "
            "the output of encoder(images)"
        )
    dtype = torch.promote_types(features.dtype, head.weight.dtype)
    activation, *blocks = features.to(dtype).split([size, *[1 + size] * count], dim=1)
    perturbed = {}
    for perturbation in request.perturbations:
        found = [b[:, 1:] for b in blocks if bool((b[:, 0] == _marker(perturbation)).all())]
        if not found:
            raise ValueError(
                f"features: activations of the images with {perturbation} are missing; encoder(images) returns them for "
                "the present settings, and predict(images) and fit(loader) need no features"
            )
        perturbed[perturbation] = found[0]
    logits = nn.functional.linear(activation, head.weight.to(dtype), head.bias.to(dtype))
    return FeatureStatistics.from_features(
        Features(logits, logits.argmax(1), activation, perturbed, head), request
    )


def _marker(value: Any) -> float:
    """Return a number that identifies ``value`` by its representation, exact in float32."""
    return float(int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=3).digest(), "big"))

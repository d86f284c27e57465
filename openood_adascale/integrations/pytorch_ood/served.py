"""Whether a detector of pytorch-ood's needs nothing of an image but z or a, so that stored ones serve it.

It is found out with some images: its own ``predict`` and ``fit`` are to hand on, to what the class of detectors that it is
of does the work in (``predict_features``, say), just the activations or logits of the network, and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_ood.api import Detector, FeatureMapsDetector, FeaturesDetector, GradientDetector, LogitsDetector
from torch import Tensor

from ...evidence.encode import Encoded

CHECKED = 16
"""Images of a set that are looked at."""


@dataclass(frozen=True)
class Kind:
    """A kind of detectors, and what of it works on what the network makes of images."""

    base: type
    predict: str
    fit: str


KINDS = (
    Kind(LogitsDetector, "predict_logits", "fit_logits"),
    Kind(FeaturesDetector, "predict_features", "fit_features"),
    Kind(FeatureMapsDetector, "predict_feature_maps", "fit_feature_maps"),
)


@dataclass(frozen=True)
class Source:
    """What stands for an image's way through the network."""

    kind: Kind
    part: str
    """Of :class:`~openood_adascale.evidence.encode.Encoded`: ``activation`` or ``logits``."""
    shape: tuple[int, ...]
    """Of one image's."""

    def of(self, encoded: Encoded) -> Tensor:
        """(B, ...) of a batch's images."""
        values: Tensor = getattr(encoded, self.part)
        return values.reshape(len(values), *self.shape)


def kind_of(detector: Detector) -> Kind | None:
    """None where it works on images, by gradients, say."""
    if isinstance(detector, GradientDetector):
        return None
    return next((kind for kind in KINDS if isinstance(detector, kind.base)), None)


def for_scores(detector: Detector, images: Tensor, encoded: Encoded) -> Source | str:
    """What its ``predict`` needs of images, or why it is to be given them.

    Args:
        detector: fitted, if need be; left as it is.
        images: some, on its device.
        encoded: what the network says of them.
    """
    kind = kind_of(detector)
    if kind is None:
        return f"{type(detector).__name__} works on images"
    scores = torch.arange(len(images), dtype=torch.float32, device=images.device)
    with _recorded(detector, kind.predict, scores) as (spy, seen), torch.no_grad():
        try:
            found = spy.predict(images.clone())
        except Exception as error:
            return f"its predict fails on some of the images: {error}"
    handed_on = isinstance(found, Tensor) and torch.equal(found.to(scores), scores)
    if len(seen) != 1 or not handed_on:
        return f"its predict does more than to call {kind.predict} once"
    return _source(kind, seen[0][0], encoded, kind.predict)


def for_learning(detector: Detector, images: Tensor, labels: Tensor, encoded: Encoded) -> Source | str:
    """What its ``fit`` needs of images, or why it is to be given them; see :func:`for_scores`.

    Args:
        labels: (B,) of the images, of which some are not below 0.
    """
    kind = kind_of(detector)
    if kind is None:
        return f"{type(detector).__name__} works on images"
    known = labels >= 0
    if not bool(known.any()):
        return "some of the images are to be in-distribution"
    with _recorded(detector, kind.fit, None) as (spy, seen):
        before = _state(spy)
        try:
            spy.fit([(images.clone(), labels.clone())])
        except Exception as error:
            return f"its fit fails on some of the images: {error}"
        if len(seen) != 1 or _state(spy) != before:
            return f"its fit does more than to call {kind.fit} once"
    given = seen[0][1] if len(seen[0]) > 1 else None
    if given is not None and not (
        isinstance(given, Tensor) and torch.equal(given.cpu(), labels[known].cpu())
    ):
        return f"its fit gives {kind.fit} other labels"
    here = known.to(encoded.logits.device)
    some = encoded._replace(logits=encoded.logits[here], activation=encoded.activation[here])
    return _source(kind, seen[0][0], some, kind.fit)


def _source(kind: Kind, values: Any, encoded: Encoded, name: str) -> Source | str:
    """Which of the network's outputs ``values`` are."""
    if isinstance(values, Tensor):
        for part in ("activation", "logits"):
            expected: Tensor = getattr(encoded, part)
            values = values.detach().to(expected.device)
            if values.dtype == expected.dtype and _close(values.flatten(1), expected):
                return Source(kind, part, tuple(values.shape[1:]))
    return f"{name} is given neither the activations of the network's last layer but one nor its logits"


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether they are the same but for the rounding of another batch size or memory format."""
    return one.shape == other.shape and torch.allclose(
        one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max())
    )


@contextmanager
def _recorded(detector: Detector, name: str, answer: Any) -> Iterator[tuple[Any, list[tuple[Any, ...]]]]:
    """A twin of ``detector`` that notes what its method of this name is given, in place of calling it."""
    twin: Any = copy.copy(detector)
    seen: list[tuple[Any, ...]] = []

    def record(*args: Any, **kwargs: Any) -> Any:
        seen.append((*args, *kwargs.values()))
        return twin if answer is None else answer

    vars(twin)[name] = record
    yield twin, seen


def _state(detector: Detector) -> dict[str, int]:
    """Which objects it holds; where it is does not count."""
    return {name: id(value) for name, value in vars(detector).items() if name != "_device"}

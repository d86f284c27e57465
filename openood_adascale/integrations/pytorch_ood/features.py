"""What a method learns and scores from, as one row of numbers per image: the features of pytorch-ood's ``encoder``."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NotFinite
from ...evidence.encode import Encoded
from ...evidence.evidence import Evidence
from ...evidence.fingerprint import Glance
from ...evidence.head import Head
from ...evidence.modes import unwrap
from ...evidence.plan import Execution, Perturbation, Plan
from ...evidence.reader import Reader

# How many numbers are worked on at a time, so that features of many images need little more memory.
_BLOCK = 2**24
# Detectors of one network share what reads it, so that pytorch-ood's benchmarks, which go by identity, do, too.
_readers: weakref.WeakValueDictionary[int, SharedReader] = weakref.WeakValueDictionary()
_encoders: weakref.WeakValueDictionary[tuple[Any, ...], Encoder] = weakref.WeakValueDictionary()


class SharedReader(Reader):
    """A network's reader that looks at its weights once between two passes: a search learns from features many times."""

    _digest: tuple[Glance, str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedReader, *super().__reduce__()[1:]

    def encode(self, *args: Any, **kwargs: Any) -> Encoded:
        self._digest = None
        return super().encode(*args, **kwargs)

    def digest(self) -> str:
        network = unwrap(self.network)
        if self._digest is None or not self._digest[0].still_holds(network):
            self._digest = Glance(network, self.volatile), super().digest()
        return self._digest[1]


class Encoder:
    """The activation of an image, and those of the image perturbed in ``perturbations``, as one row.

    The network is run in eval mode, on its own device, and left as it was found.
    """

    def __init__(self, reader: Reader, perturbations: Sequence[Perturbation], execution: Execution) -> None:
        self.reader = reader
        self.perturbations = tuple(perturbations)
        self.execution = execution

    def __call__(self, images: Tensor) -> Tensor:
        """(B, D) activations a of (B, ...) images. With P perturbations, (B, D + P·(1 + D)): a, and for each of them a
        number that tells which it is, and a_ε. The errors are :func:`~openood_adascale.evidence.encode.encode`'s."""
        encoded = self.reader.encode(images, self.perturbations, self.execution)
        columns = [encoded.activation]
        for perturbation, moved in encoded.perturbed.items():
            columns += [moved.new_full((len(moved), 1), mark_of(perturbation)), moved]
        return torch.cat(columns, dim=1)

    def __getattr__(self, name: str) -> Any:
        # By its __qualname__ a file of pytorch-ood's cache is found: it tells the network's weights, too.
        if name != "__qualname__":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        told = f"{self.reader.digest()} {self.perturbations} {self.execution}"
        return f"{type(self).__name__}.{hashlib.blake2b(told.encode(), digest_size=16).hexdigest()}"


def reader_of(network: nn.Module) -> SharedReader:
    """What reads ``network``, the same as long as any detector has it."""
    reader = _readers.get(id(network))
    if reader is None or reader.network is not network:
        reader = _readers[id(network)] = SharedReader(network)
    return reader


def encoder_of(reader: Reader, perturbations: Sequence[Perturbation], execution: Execution) -> Encoder:
    """The encoder of these, the same as long as any detector has it."""
    key = (id(reader), tuple(perturbations), execution)
    encoder = _encoders.get(key)
    if encoder is None or encoder.reader is not reader:
        encoder = _encoders[key] = Encoder(reader, perturbations, execution)
    return encoder


def mark_of(perturbation: Perturbation) -> float:
    """The number that tells which perturbation the columns after it are of; exact in float32."""
    digest = hashlib.blake2b(repr(perturbation).encode(), digest_size=3).digest()
    return float(int.from_bytes(digest, "big"))


def evidence_of(features: Tensor, head: Head, plan: Plan) -> Evidence:
    """Evidence of images whose features are there already, on their device.

    Args:
        features: as an :class:`Encoder` gives them, (B, D) or (B, D + P·(1 + D)), floating, B > 0.
        head: of the network that they are of.
        plan: what is asked of them.

    Raises:
        ValueError: another shape, or the activations of a perturbation that the plan asks for are not there.
        TypeError: not a floating tensor.
        NotFinite: NaN or infinity; names the rows.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        what = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"features: {what} is not allowed; expected a floating tensor")
    rows = max(1, _BLOCK // max(1, features[:1].numel()))
    parts, done = [], 0
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        for block in features.split(rows):
            try:
                parts.append(Evidence.of(_encoded(block, head, plan.perturbations), plan))
            except NotFinite as error:
                raise error.shifted(done) from None
            done += len(block)
    return Evidence.cat(parts)


def _encoded(features: Tensor, head: Head, perturbations: Sequence[Perturbation]) -> Encoded:
    size = head.weight.shape[1]
    count, rest = divmod(features.shape[-1] - size, 1 + size)
    if features.ndim != 2 or rest or count < 0:
        raise ValueError(
            f"features: shape {tuple(features.shape)} is not allowed; expected (B, {size}) activations of the network's "
            "last layer but one, or what encoder(images) gives"
        )
    if bad := (~torch.isfinite(features).all(1)).nonzero().flatten().tolist():
        raise NotFinite("features", bad)
    features = features.to(torch.promote_types(features.dtype, head.weight.dtype))
    blocks = features[:, size:].unflatten(1, (count, 1 + size)) if count else features.new_empty(0, 0, 0)
    perturbed = {}
    for perturbation in perturbations:
        here = (blocks[:, :, 0] == mark_of(perturbation)).all(0).nonzero().flatten() if count else []
        if not len(here):
            raise ValueError(
                f"features: activations of the images with {perturbation} are not among them; encoder(images) gives them "
                "for the present settings, and predict(images) and fit(loader) need none"
            )
        perturbed[perturbation] = blocks[:, int(here[0]), 1:]
    activation = features[:, :size]
    logits = nn.functional.linear(
        activation, head.weight.to(activation.dtype), head.bias.to(activation.dtype)
    )
    return Encoded(logits, logits.argmax(1), activation, perturbed, head)

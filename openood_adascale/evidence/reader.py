"""A network as what images are read with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .batching import Sizes, too_large
from .classifier import Classifier
from .encode import Encoded, encode, prepare
from .evidence import Evidence
from .fingerprint import Glance, changeable, network_digest
from .head import Head
from .modes import evaluating, unwrap
from .plan import Execution, Perturbation, Plan


class Reader:
    """A network as a source of Evidence; finds its head anew whenever anyone has touched it.

    The network is left as it was found: mode, ``requires_grad``, ``.grad``, device and hooks. It is run in eval
    mode, on its own device and in its own dtype.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._classifier: Classifier | None = None
        self._glance: Glance | None = None
        self.volatile: frozenset[str] = frozenset()
        """Names of buffers and attributes that running the network changes (and :data:`~.fingerprint.CODE` where its code
        keeps something outside it): counters and the like."""
        self.sizes = Sizes()
        """How many images at a time were found to fit, or to pay."""

    def __reduce__(self) -> tuple[Any, ...]:  # another process finds the head by itself
        return Reader, (self.network,), {"volatile": self.volatile}

    @property
    def untouched(self) -> bool:
        """Whether the network is as the last pass left it. What a pass itself changes does not count."""
        return self._glance is not None and self._glance.still_holds(unwrap(self.network))

    @property
    def stochastic(self) -> bool:
        """Whether the network is known to say something else of an image each time."""
        return self._classifier is not None and self._classifier.stochastic

    @property
    def head(self) -> Head | None:
        """The network's head as it is now, in eval mode; None before a pass has found it, or where that layer is no longer
        the network's."""
        network, classifier = unwrap(self.network), self._classifier
        if classifier is None or classifier.layer_name is None:
            return None
        in_training = any(module.training for module in network.modules())
        with evaluating(network):
            head = classifier.head
            # Back in its mode, the network may have other weights.
            return Head(head.weight.clone(), head.bias.clone()) if in_training else head

    def digest(self) -> str:
        """The network's digest, without what running it changes."""
        return network_digest(self.network, self.volatile)

    def probe(self, images: Tensor) -> dict[str, Any] | None:
        """Where the network's head is, what it takes and gives: ``head``, ``D``, ``C``; None where what the network says
        of an image can depend on the others of its batch or on earlier passes. Errors are those of
        :class:`~.classifier.Classifier`."""
        classifier = self._classifier_for(images)
        if classifier.keeps_batches_whole or classifier.stochastic or self.volatile:
            return None
        classes, size = classifier.head.weight.shape
        return {"head": classifier.layer_name, "D": size, "C": classes}

    def read(self, images: Tensor, plan: Plan, execution: Execution) -> Evidence:
        """Evidence of one batch, on the network's device; the errors are :func:`~.encode.encode`'s."""
        encoded = self.encode(images, plan.perturbations, execution)
        with torch.no_grad():
            return Evidence.of(encoded, plan)

    def encode(
        self,
        images: Tensor,
        perturbations: Sequence[Perturbation],
        execution: Execution,
        plain: bool = True,
    ) -> Encoded:
        """:func:`~.encode.encode` of one batch."""
        encoded = encode(self._classifier_for(images), images, perturbations, execution, plain)
        self._glance = Glance(unwrap(self.network), self.volatile)
        return encoded

    def _classifier_for(self, images: Tensor) -> Classifier:
        network = unwrap(self.network)
        if self._classifier is None or not self.untouched:
            before = changeable(network)
            self._classifier = _tried(self.network, prepare(network, images[:2]))
            self._classifier.sizes = self.sizes
            after = changeable(network)
            names = {*before, *after}
            self.volatile = frozenset(name for name in names if before.get(name) != after.get(name))
            self._glance = Glance(network, self.volatile)
        return self._classifier


def _tried(network: nn.Module, images: Tensor) -> Classifier:
    """A network taken apart on two images, or on one where a GPU has no room for two."""
    try:
        return Classifier(network, images)
    except torch.cuda.OutOfMemoryError as error:
        if len(images) == 1:
            raise MemoryError(too_large(images, False, error)) from error
    return _tried(network, images[:1])  # not in the handler, which keeps what did not fit alive

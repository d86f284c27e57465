"""Any classifier as OpenOOD's postprocessors expect a network to be: with its feature, its head and their size."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..evidence.classifier import Classifier
from ..evidence.head import logits_of
from ..evidence.modes import Shell, unwrap

_EXPECTED = ("get_fc", "get_fc_layer")


def dressed(network: nn.Module, images: Tensor) -> nn.Module:
    """``network`` itself where it is made as OpenOOD's are, and otherwise a :class:`Dressed`.

    Args:
        network: the classifier.
        images: (B, ...) to find its head with; on its device, the first two are used.

    Raises:
        ValueError: its output is not that of a linear layer.
    """
    inside = unwrap(network)
    takes = "return_feature" in inspect.signature(inside.forward).parameters
    if takes and all(callable(getattr(inside, name, None)) for name in _EXPECTED):
        return network
    return Dressed(network, images)


class Dressed(Shell):
    """A classifier that answers to what OpenOOD's methods ask of a network. Images have gradients through it.

    Args:
        network, images: as :func:`dressed` takes them.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        inside = unwrap(network)
        super().__init__(inside)
        self._classifier = Classifier(inside, images)

    def forward(
        self, x: Tensor, return_feature: bool = False, return_feature_list: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C) logits; with ``return_feature`` also the (B, D) activation before the head.

        Raises:
            TypeError: features of inner layers are asked for.
        """
        if return_feature_list:
            raise TypeError(
                f"network: {type(self.module).__name__} gives no features of inner layers (return_feature_list)"
            )
        if not return_feature:
            return logits_of(self.module, self.module(x))
        output = self._classifier(x)
        return output.logits, output.activation

    @property
    def fc(self) -> nn.Linear:
        """The head; one of the same numbers where the network's own has another form, or no bias."""
        inside = getattr(self.module, "_orig_mod", self.module)  # torch.compile's
        own = inside.get_submodule(self._classifier.layer_name or "")
        if isinstance(own, nn.Linear) and own.bias is not None:
            return own
        head = self._classifier.head
        made = nn.Linear(head.weight.shape[1], head.weight.shape[0], device="meta")
        made.weight, made.bias = nn.Parameter(head.weight.clone()), nn.Parameter(head.bias.clone())
        return made

    @property
    def feature_size(self) -> int:
        """D."""
        return int(self._classifier.head.weight.shape[1])

    def get_fc(self) -> tuple[np.ndarray, np.ndarray]:
        """(C, D) weight and (C,) bias of the head."""
        weight, bias = self._classifier.head
        return weight.cpu().numpy(), bias.cpu().numpy()

    def get_fc_layer(self) -> Any:
        """The head."""
        return self.fc

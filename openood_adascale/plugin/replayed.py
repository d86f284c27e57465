"""What is kept of an Evaluator whose postprocessor draws on the store."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..evidence.fingerprint import full_network_digest
from .stored_images import Refusals
from .stored_network import StoredNetwork


@dataclass
class Replayed:
    """An Evaluator's network and loaders, and what stands in for them while its methods run."""

    classifier: nn.Module
    """What the Evaluator was given."""
    network: nn.Module
    """That, or what the Evaluator wraps it in."""
    loaders: Mapping[str, Any]
    digest: str
    """The classifier's."""
    postprocessor: Any
    stored: StoredNetwork
    stored_network: nn.Module
    """That, or what the Evaluator wraps it in."""
    stored_loaders: Mapping[str, Any]
    refusals: Refusals
    name: str
    """The postprocessor's, for what is said."""
    anew: Callable[[], None] = lambda: None
    """Construct the Evaluator once more, on the images, as if it had never been otherwise."""
    inside: int = 0
    _leaves: list[Any] = field(init=False)
    attributes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._leaves = [loader for _, loader in leaves(self.loaders)]
        self.note()

    def note(self) -> None:
        """Remember what the postprocessor's attributes are."""
        self.attributes = identities(self.postprocessor)

    def is_of(self, evaluator: Any) -> bool:
        """Whether nobody has changed network, loaders or postprocessor since."""
        return (
            evaluator.net is self.network
            and evaluator.dataloader_dict is self.loaders
            and evaluator.postprocessor is self.postprocessor
            and [id(loader) for _, loader in leaves(self.loaders)] == list(map(id, self._leaves))
            and all(loader.holds for _, loader in leaves(self.stored_loaders))
            and full_network_digest(self.classifier) == self.digest
        )


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Of nested dicts: paths and what is there."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def identities(postprocessor: Any) -> dict[str, int]:
    """Of an object's attributes, which objects they are."""
    return {name: id(value) for name, value in vars(postprocessor).items()}


def to_be_put_back(given: Any) -> Callable[[], None] | None:
    """What gives an object its present state back; None where that cannot be copied."""
    if given is None:
        return lambda: None
    try:
        before = copy.deepcopy(vars(given), {id(given): given})
    except Exception:
        return None

    def put_back() -> None:
        vars(given).clear()
        vars(given).update(copy.deepcopy(before, {id(given): given}))

    return put_back

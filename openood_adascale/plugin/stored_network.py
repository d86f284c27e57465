"""A network that answers from a store: for methods that need nothing of an image but z and a."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..evidence.description import described
from ..evidence.fingerprint import full_network_digest
from ..evidence.rows import Rows
from .stored_images import Refusals, StoredImages

NETWORK_ATTRIBUTES = frozenset({"fc", "get_fc", "get_fc_layer", "feature_size"})
"""What methods may ask a network for; they get copies of its own answers."""


class _Parameter:
    """Of a network's parameters, where and what they are."""

    def __init__(self, parameter: Tensor, refusals: Refusals) -> None:
        self.device, self.dtype = parameter.device, parameter.dtype
        self._refusals = refusals

    def __getattr__(self, name: str) -> Any:
        self._refusals.refuse(f"it looks into the network (parameters().{name})")


class _Behind:
    """What a :class:`StoredNetwork` answers from."""

    def __init__(self, network: nn.Module, refusals: Refusals) -> None:
        self.network, self.refusals = network, refusals
        self.rows: list[tuple[int, Rows]] = []
        self.copies: dict[str, tuple[Any, str | None]] = {}
        self.copied: dict[
            int, Any
        ] = {}  # of deepcopy: what is one object in the network is one among the copies

    def copy_of(self, name: str) -> Any:
        """A copy of what the network has or gives under a name of :data:`NETWORK_ATTRIBUTES`, always the same."""
        if name not in self.copies:
            found = getattr(self.network, name)
            copied = copy.deepcopy(found() if name.startswith("get_") else found, self.copied)
            self.copies[name] = copied, _state(copied)
        return self.copies[name][0]

    def require_unchanged(self) -> None:
        """Refuse if a copy is no longer what it was: the network itself would be another."""
        if any(state is None or _state(copied) != state for copied, state in self.copies.values()):
            self.refusals.refuse("it changes the network")


def _state(value: Any) -> str | None:
    return full_network_digest(value) if isinstance(value, nn.Module) else described(value)


class StoredNetwork(nn.Module):
    """Answers as the network did, for tokens of :class:`~.stored_loader.StoredLoader`; all else is refused."""

    def __init__(self, network: nn.Module, refusals: Refusals) -> None:
        # No torch.nn.Module's state: there is nothing of it to be had.
        object.__setattr__(self, "_behind", _Behind(network, refusals))

    def enter(self, rows: Rows) -> int:
        """Have it know some rows; their first token."""
        known = _behind(self).rows
        first = known[-1][0] + known[-1][1].count if known else 0
        known.append((first, rows))
        return first

    def require_unchanged(self) -> None:
        """Raise :class:`~.stored_images.NeedsMore` if what was handed out of the network has been changed."""
        _behind(self).require_unchanged()

    def forward(self, x: Any, return_feature: Any = False, return_feature_list: Any = False) -> Any:
        """z, or (z, a), of tokens of one loader."""
        behind = _behind(self)
        if not isinstance(x, StoredImages):
            behind.refusals.refuse("it makes images of its own")
        if return_feature_list:
            behind.refusals.refuse("it needs features of inner layers (return_feature_list)")
        numbers = x.numbers.cpu()
        logits, activations = [], []
        for first, rows in behind.rows:
            here = (numbers >= first) & (numbers < first + rows.count)
            if bool(here.any()):
                encoded, _ = rows.encoded((numbers[here] - first).tolist())
                logits.append(encoded.logits)
                activations.append(encoded.activation)
        if len(logits) != 1 or len(logits[0]) != len(numbers):
            behind.refusals.refuse("it mixes images of several data sets")
        return (logits[0], activations[0]) if return_feature else logits[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __getattribute__(self, name: str) -> Any:
        if name in _ITS_OWN:
            return object.__getattribute__(self, name)
        behind = _behind(self)
        if name == "__class__":
            return type(behind.network)
        if name == "training":
            return False
        found = getattr(behind.network, name)  # its own error where it has none
        if name not in NETWORK_ATTRIBUTES:
            behind.refusals.refuse(f"it looks into the network ({name})")
        if name == "feature_size":
            return found
        copied = behind.copy_of(name)
        return (lambda: copied) if name.startswith("get_") else copied

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(_behind(self).network).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        _behind(self).refusals.refuse(f"it changes the network ({name})")

    def __delattr__(self, name: str) -> None:
        _behind(self).refusals.refuse(f"it changes the network ({name})")

    def __repr__(self) -> str:
        return repr(_behind(self).network)

    def __bool__(self) -> bool:
        return True

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """Where the network's are; nothing else of them is to be had."""
        behind = _behind(self)
        for parameter in behind.network.parameters():
            yield _Parameter(parameter, behind.refusals)

    def train(self, mode: bool = True) -> StoredNetwork:
        """Only eval mode is to be had."""
        if mode:
            _behind(self).refusals.refuse("it needs the network in training mode")
        return self

    def eval(self) -> StoredNetwork:
        """It is."""
        return self

    def _stays(self, *args: Any, **kwargs: Any) -> StoredNetwork:
        return self

    cuda = to = cpu = float = _stays


_ITS_OWN = frozenset(
    {"enter", "require_unchanged", "forward", "parameters", "train", "eval", "cuda", "to", "cpu", "float"}
)


def _behind(network: StoredNetwork) -> _Behind:
    found: _Behind = object.__getattribute__(network, "_behind")
    return found


def _refused(name: str) -> Any:
    def method(self: StoredNetwork, *args: Any, **kwargs: Any) -> Any:
        _behind(self).refusals.refuse(f"it looks into the network ({name})")

    return method


# Python looks these up on the class.
for _name in (
    "__getitem__",
    "__iter__",
    "__len__",
    "__contains__",
    "__dir__",
    "__deepcopy__",
    "__copy__",
    "__reduce_ex__",
):
    setattr(StoredNetwork, _name, _refused(_name))

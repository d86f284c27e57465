"""A network and loaders that answer from a store: for methods that need nothing of an image but z and a."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import data

from ..evidence.rows import Rows
from .stored_images import Refusals, StoredImages

NETWORK_ATTRIBUTES = frozenset({"fc", "get_fc", "get_fc_layer", "feature_size"})
"""What methods may ask a network for; the network's own answers."""


class _Parameter:
    """Of a network's parameters, where and what they are."""

    def __init__(self, parameter: Tensor, refusals: Refusals) -> None:
        self.device, self.dtype = parameter.device, parameter.dtype
        self._refusals = refusals

    def __getattr__(self, name: str) -> Any:
        self._refusals.refuse(f"it looks into the network (parameters().{name})")


class StoredNetwork(nn.Module):
    """Answers as the network did, for tokens of :class:`StoredLoader`."""

    def __init__(self, network: nn.Module, refusals: Refusals) -> None:
        super().__init__()
        # Not as a submodule: what is to be seen of it is said below.
        self.__dict__["_network"] = network
        self.__dict__["_refusals"] = refusals
        self.__dict__["_rows"] = []
        self.training = False

    def enter(self, rows: Rows) -> int:
        """Have it know some rows; their first token."""
        known: list[tuple[int, Rows]] = self._rows
        first = known[-1][0] + known[-1][1].count if known else 0
        known.append((first, rows))
        return first

    def forward(self, x: Any, return_feature: Any = False, return_feature_list: Any = False) -> Any:
        """z, or (z, a), of tokens of one loader."""
        if not isinstance(x, StoredImages):
            self._refusals.refuse("it makes images of its own")
        if return_feature_list:
            self._refusals.refuse("it needs features of inner layers (return_feature_list)")
        numbers = x.numbers.cpu()
        logits, activations = [], []
        for first, rows in self._rows:
            here = (numbers >= first) & (numbers < first + rows.count)
            if bool(here.any()):
                encoded, _ = rows.encoded((numbers[here] - first).tolist())
                logits.append(encoded.logits)
                activations.append(encoded.activation)
        if len(logits) != 1 or len(logits[0]) != len(numbers):
            self._refusals.refuse("it mixes images of several data sets")
        return (logits[0], activations[0]) if return_feature else logits[0]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__dict__["_network"], name)
        if name not in NETWORK_ATTRIBUTES:
            self.__dict__["_refusals"].refuse(f"it looks into the network ({name})")
        return found

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """Where the network's are; nothing else of them is to be had."""
        for parameter in self._network.parameters():
            yield _Parameter(parameter, self._refusals)

    def train(self, mode: bool = True) -> StoredNetwork:
        """Only eval mode is to be had."""
        if mode:
            self._refusals.refuse("it needs the network in training mode")
        return self

    def _stays(self, *args: Any, **kwargs: Any) -> StoredNetwork:
        return self

    cuda = to = cpu = float = _stays


def _refused(name: str) -> Any:
    def method(self: StoredNetwork, *args: Any, **kwargs: Any) -> Any:
        self._refusals.refuse(f"it looks into the network ({name})")

    return method


for _name in (
    "modules", "named_modules", "children", "named_children", "named_parameters", "buffers", "named_buffers",
    "state_dict", "load_state_dict", "zero_grad", "requires_grad_", "apply", "half", "double", "register_forward_hook",
    "register_forward_pre_hook", "register_full_backward_hook", "get_submodule", "get_parameter", "__deepcopy__",
    "__reduce_ex__",
):  # fmt: skip
    setattr(StoredNetwork, _name, _refused(_name))


class _Tokens(data.Dataset[int]):
    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> int:
        return index

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_dataset"], name)


class StoredLoader(data.DataLoader[Any]):
    """A loader's batches, in its order, with tokens for images; draws random numbers as that loader does.

    Args:
        loader: PyTorch's.
        find: gives its images as rows of the store in use, or None where they cannot be stored; asked when needed.
        network: what is to know the tokens.
        refusals: where what is asked for in vain is noted.
        description: of the images, for the bar.
    """

    def __init__(
        self,
        loader: Any,
        find: Callable[[], Rows | None],
        network: StoredNetwork,
        refusals: Refusals,
        description: str,
    ) -> None:
        super().__init__(
            _Tokens(loader.dataset),
            batch_size=loader.batch_size,
            sampler=loader.sampler,
            drop_last=loader.drop_last,
            generator=loader.generator,
            collate_fn=self._batch,
        )
        self._find, self._network, self._refusals = find, network, refusals
        self._description = description
        self._found: tuple[Rows, int] | None = None

    def rows(self) -> tuple[Rows, int]:
        """Its images in the store, and the first one's token.

        Raises:
            NeedsMore: they cannot be stored.
        """
        if self._found is None:
            rows = self._find()
            if rows is None:
                self._refusals.refuse(f"the images of {self._description} cannot be stored")
            self._found = rows, self._network.enter(rows)
        return self._found

    def fill(self) -> None:
        """Have the network run for what the store lacks of these images."""
        self.rows()[0].fill((), None, self._description)

    def __iter__(self) -> Any:
        self.fill()
        return super().__iter__()

    def _batch(self, indices: list[int]) -> dict[str, Any]:
        rows, first = self.rows()
        return {
            "data": StoredImages.of(torch.tensor(indices) + first, self._refusals),
            "label": torch.from_numpy(rows.labels(indices)),
        }

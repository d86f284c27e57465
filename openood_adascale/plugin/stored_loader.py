"""A loader with tokens for images: for methods that need nothing of an image but z and a."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import data

from ..errors import Changed
from ..evidence.rows import Rows
from .stored_images import Refusals, StoredImages
from .stored_network import StoredNetwork


class _Tokens(data.Dataset[int]):
    """Of a data set the number of images, its name and classes; whatever else is asked of it is refused."""

    def __init__(self, dataset: Any, refusals: Refusals) -> None:
        self.__dict__.update(_dataset=dataset, _refusals=refusals)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> int:
        return index

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.__dict__["_dataset"], name)
        if name not in ("name", "num_classes", "classes", "class_to_idx"):
            self.__dict__["_refusals"].refuse(f"it looks into the data set ({name})")
        return copy.deepcopy(found)

    def __setattr__(self, name: str, value: Any) -> None:
        self._refusals.refuse(f"it changes the data set ({name})")


class _Batch(dict[str, Any]):
    """What a method may ask of a batch: its ``data`` and ``label``."""

    def __init__(self, refusals: Refusals, content: dict[str, Any]) -> None:
        super().__init__(content)
        self._refusals = refusals

    def _asked(self, key: Any) -> None:
        if key not in ("data", "label"):
            self._refusals.refuse(f"it asks for more of a batch ({key})")

    def __missing__(self, key: Any) -> Any:
        self._asked(key)

    def __contains__(self, key: Any) -> bool:
        self._asked(key)
        return super().__contains__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self._asked(key)
        return super().get(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        self._asked(key)
        return super().pop(key, *default)

    def _whole(self, *args: Any) -> Any:
        self._refusals.refuse("it asks for all that a batch has")

    keys = values = items = __iter__ = __len__ = copy = popitem = setdefault = _whole


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
            _Tokens(loader.dataset, refusals),
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

    @property
    def holds(self) -> bool:
        """Whether the images are what they were when they were looked for, if they were."""
        return self._found is None or self._found[0].holds

    def fill(self) -> None:
        """Have the network run for what the store lacks of these images."""
        self.rows()[0].fill((), None, self._description)

    def __iter__(self) -> Any:
        self.fill()
        if not self.holds:
            raise Changed(f"store: the images of {self._description} changed while they were read. Run again")
        return super().__iter__()

    def _batch(self, indices: list[int]) -> dict[str, Any]:
        rows, first = self.rows()
        tokens = StoredImages.of(torch.tensor(indices) + first, self._refusals)
        return _Batch(self._refusals, {"data": tokens, "label": torch.from_numpy(rows.labels(indices))})

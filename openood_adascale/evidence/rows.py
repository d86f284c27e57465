"""The images of a loader as rows of a store: filled where they lack, and read in the loader's order."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data
from tqdm.auto import tqdm

from ..errors import Changed, StoreError
from .batch import hidden
from .dataset import batches_of, image_of, in_words, is_deterministic, some_images
from .disk import DiskEntry
from .encode import Encoded
from .fingerprint import dataset_digest, full_network_digest
from .head import Head, head_of
from .modes import device_of, evaluating, unwrap
from .passes import Asked, Pass, batch_size, done
from .plan import Execution, Perturbation
from .reader import Reader
from .sharing import current_store, entry_key, part_name
from .store import SHARD, Entry, Shard, Store, kept_as

PLAIN = "activation"
_random_images: set[str] = set()  # digests of data sets whose images differ from reading to reading


class Rows:
    """A data set's images in an entry of a store. See :func:`rows_of`."""

    def __init__(
        self,
        store: Store,
        entry: Entry,
        reader: Reader,
        loader: Any,
        execution: Execution,
        of: tuple[str, str],
    ) -> None:
        self._store, self._entry, self._reader, self._of = store, entry, reader, of
        self._loader, self._execution = loader, execution
        self.count = len(loader.dataset)
        """N."""

    @property
    def holds(self) -> bool:
        """Whether the images are still what they were when these rows were looked for."""
        return dataset_digest(self._loader) == self._of[1]

    def order(self) -> Iterator[list[int]]:
        """The rows of each batch, in the order in which the loader would yield them; it draws as the loader does."""
        return batches_of(self._loader)

    def batches(
        self, perturbations: Sequence[Perturbation], progress: bool | None, description: str
    ) -> Iterator[tuple[Encoded, np.ndarray]]:
        """What the network says of each of the loader's batches, and the labels; the network is run for what lacks."""
        self.fill(perturbations, progress, description)
        for rows in self.order():
            yield self.encoded(rows, perturbations)

    def encoded(
        self, rows: Sequence[int], perturbations: Sequence[Perturbation] = ()
    ) -> tuple[Encoded, np.ndarray]:
        """What the network said of some rows, on its device, and their labels."""
        network = unwrap(self._reader.network)
        device = device_of(network)
        chosen = torch.as_tensor(rows)
        in_training = any(module.training for module in network.modules())
        with evaluating(network):
            head = head_of(_layer(network, self._about()["head"]))
            if in_training:  # back in its mode, the network may have other weights
                head = Head(head.weight.clone(), head.bias.clone())
        activation = self._gather(PLAIN, "activation", chosen).to(device, head.weight.dtype)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            logits = nn.functional.linear(activation, head.weight, head.bias)
        moved = {
            p: self._gather(part_name(p), "activation", chosen).to(device, head.weight.dtype)
            for p in perturbations
        }
        prediction = self._gather(PLAIN, "prediction", chosen).to(device)
        return Encoded(logits, prediction, activation, moved, head), self.labels(rows)

    def labels(self, rows: Sequence[int]) -> np.ndarray:
        """Of some rows, int64; −1 where unknown."""
        found: np.ndarray = self._gather(PLAIN, "label", torch.as_tensor(rows)).numpy()
        return found

    def fill(self, perturbations: Sequence[Perturbation], progress: bool | None, description: str) -> None:
        """Run the network for what the store lacks.

        Raises:
            StoreError: there is no room for it.
            Changed: network or images are not what they were when these rows were looked for, or became others meanwhile.
            NotFinite: NaN or infinity; names the images by their place in the data set and, where it tells it, file.
        """
        parts = {PLAIN: None, **{part_name(p): p for p in perturbations}}
        lacking: dict[int, tuple[str, ...]] = {}
        for number in range(-(-self.count // SHARD)):
            rows = len(self._rows_of(number))
            if lacks := tuple(part for part in parts if not self._entry.has(part, number, rows)):
                lacking[number] = lacks
        if not lacking:
            return
        self._require_unchanged()
        width = self._about()["D"] * (4 if self._store.dtype == "float32" else 2)
        self._store.require(sum(len(self._rows_of(n)) * width * len(lacks) for n, lacks in lacking.items()))
        if isinstance(self._entry, DiskEntry):
            self._entry.sweep()
        total = sum(len(self._rows_of(number)) for number in lacking)
        written: list[tuple[str, int]] = []
        with tqdm(total=total, desc=description, unit="image", disable=hidden(progress)) as bar:
            for lacks in dict.fromkeys(lacking.values()):
                numbers = [number for number, others in lacking.items() if others == lacks]
                wanted = [p for part, p in parts.items() if p is not None and part in lacks]
                for number, shard in self._shards(numbers, wanted, PLAIN in lacks, bar.update):
                    for part in lacks:
                        self._entry.write(part, number, shard.pop(part))
                        written.append((part, number))
        try:
            self._require_unchanged()
        except Changed:
            for part, number in written:
                self._entry.drop(part, number)
            raise

    def _require_unchanged(self) -> None:
        what = ["the network"] * (full_network_digest(self._reader.network) != self._of[0])
        what += ["the images"] * (not self.holds)
        if what:
            told = f"{' and '.join(what)} changed while images were to be read"
            raise Changed(f"store: {told}; nothing of that is kept. Run again")

    def _shards(
        self,
        numbers: Sequence[int],
        perturbations: Sequence[Perturbation],
        plain: bool,
        advance: Callable[[int], Any],
    ) -> Iterator[tuple[int, dict[str, Shard]]]:
        """The parts of each of these shards, from the network."""
        indices = [index for number in numbers for index in self._rows_of(number)]
        asked = Asked(perturbations, self._execution, plain)
        size = batch_size(self._reader, self._loader, len(indices), asked)
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        work = Pass(
            self._reader,
            self._loader,
            batches,
            asked,
            Keeping(self._store.dtype, plain),
            network_digest=self._of[0],
        )
        waiting: list[dict[str, Shard]] = []
        left = iter(numbers)
        number: int | None = next(left)
        for parts in done(work, len(batches)):
            waiting.append(parts)
            advance(_length(parts))
            while number is not None and sum(map(_length, waiting)) >= (size := len(self._rows_of(number))):
                joined = _joined(waiting)
                waiting = [{part: _slice(shard, size, None) for part, shard in joined.items()}]
                yield number, {part: _slice(shard, 0, size) for part, shard in joined.items()}
                number = next(left, None)

    def _about(self) -> dict[str, Any]:
        about = self._entry.about
        if about is None:
            raise StoreError("store: an entry was removed while it was in use; run again")
        return about

    def _rows_of(self, number: int) -> range:
        return range(number * SHARD, min((number + 1) * SHARD, self.count))

    def _gather(self, part: str, name: str, rows: Tensor) -> Tensor:
        shards = rows // SHARD
        numbers = shards.unique().tolist()
        first = self._entry.read(part, numbers[0])[name]
        if len(numbers) == 1:
            return first[rows - SHARD * numbers[0]]
        found = first.new_empty(len(rows), *first.shape[1:])
        for number in numbers:
            here = shards == number
            found[here] = self._entry.read(part, number)[name][rows[here] - SHARD * number]
        return found


@dataclass
class Keeping:
    """What of a batch goes into a store.

    Args:
        dtype: of the activations.
        plain: whether a, the predictions and the labels do, or the perturbed activations alone.
    """

    dtype: str
    plain: bool

    def __call__(self, encoded: Encoded, labels: np.ndarray) -> dict[str, Shard]:
        parts: dict[str, Shard] = {}
        if self.plain:
            parts[PLAIN] = {
                "activation": kept_as(self.dtype, encoded.activation),
                "prediction": encoded.prediction.cpu(),
                "label": torch.from_numpy(labels.astype(np.int64)),
            }
        for perturbation, moved in encoded.perturbed.items():
            parts[part_name(perturbation)] = {"activation": kept_as(self.dtype, moved)}
        return parts


def rows_of(
    reader: Reader,
    loader: Iterable[Any],
    execution: Execution,
    parts: int = 1,
    network_digest: str | None = None,
) -> Rows | None:
    """A loader's images as rows of the store in use; None where they cannot be shared.

    They can where it shows what the images and the network are (see :func:`~.fingerprint.images_digest` and
    :func:`~.fingerprint.full_network_digest`), reading an image twice gives the same, and what the network says of one
    depends neither on the others of its batch nor on earlier passes.

    Args:
        reader: of the network.
        loader: of the images.
        execution: how the network is run.
        parts: how many activations of each image are asked for.
        network_digest: :func:`~.fingerprint.full_network_digest` of the network, if the caller has it; he sees to it that
            the network is still that one when he is done.

    Raises:
        StoreError: the store cannot be used.
    """
    store = current_store()
    images = dataset_digest(loader) if store is not None else None
    if store is None or images is None or images in _random_images or not isinstance(loader, data.DataLoader):
        return None
    dataset: Any = loader.dataset
    if len(dataset) == 0:
        return None
    network = network_digest or full_network_digest(reader.network)
    if network is None:
        return None
    device = device_of(unwrap(reader.network))
    key, told = entry_key(network, images, execution, device, store.dtype)
    entry = store.entry(key)
    if entry.about is None:
        if not is_deterministic(dataset, image_of):
            _random_images.add(images)
            return None
        try:
            head = reader.probe(some_images(dataset))
        except Exception:  # the pass itself says it better
            return None
        if head is None:
            return None
        entry.begin(
            {
                **told,
                **head,
                "N": len(dataset),
                "layers": type(unwrap(reader.network)).__name__,
                "data": in_words(dataset),
                "begun": datetime.datetime.now().isoformat(" ", "seconds"),
            }
        )
    about = entry.about or {}
    if not store.takes(len(dataset) * int(about.get("D", 0)) * 4 * parts):
        return None
    return Rows(store, entry, reader, loader, execution, (network, images))


def _layer(network: nn.Module, name: str) -> nn.Module:
    return getattr(network, "_orig_mod", network).get_submodule(name)


def _length(parts: dict[str, Shard]) -> int:
    return len(next(iter(next(iter(parts.values())).values())))


def _slice(shard: Shard, start: int, stop: int | None) -> Shard:
    return {name: tensor[start:stop] for name, tensor in shard.items()}


def _joined(waiting: list[dict[str, Shard]]) -> dict[str, Shard]:
    return {
        part: {name: torch.cat([parts[part][name] for parts in waiting]) for name in shard}
        for part, shard in waiting[0].items()
    }

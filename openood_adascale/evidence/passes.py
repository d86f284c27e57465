"""Batches of a data set through a network, in order, on all processes that there are."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..distributed.team import Team, active_team
from ..distributed.work import Share, Work
from ..errors import NotFinite, SettingError
from .batch import image_names, unpack
from .batching import CPU_BATCH
from .dataset import batches_of, image_of, is_deterministic, recipe_of, some_images
from .encode import Encoded
from .fingerprint import dataset_digest, full_network_digest
from .modes import device_of, unwrap
from .plan import Execution, Perturbation
from .reader import Reader

WORKERS = "OPENOOD_ADASCALE_WORKERS"
_ENOUGH = 8
"""Batches of each process from which on it does not matter that some have one more."""

Finish = Callable[[Encoded, np.ndarray], Any]
"""What is to become of a batch, of what the network said and the labels; in whichever process."""


@dataclass
class Asked:
    """What is asked of a network."""

    perturbations: Sequence[Perturbation]
    execution: Execution
    plain: bool = True
    """See :func:`~.encode.encode`."""


class Pass(Work):
    """Batches of a loader's data set through a network.

    Args:
        reader: of the network.
        loader: PyTorch's; its data set is read, and put together as it does.
        batches: which images.
        asked: of the network.
        finish: see :data:`Finish`.
        counted: whether errors count images in the order of the batches, rather than in the data set.
        network_digest: :func:`~.fingerprint.full_network_digest`, where the caller has it.
    """

    def __init__(
        self,
        reader: Reader,
        loader: Any,
        batches: Sequence[list[int]],
        asked: Asked,
        finish: Finish,
        counted: bool = False,
        network_digest: str | None = None,
    ) -> None:
        self._batches, self._asked, self._finish = batches, asked, finish
        self._starts = np.cumsum([0, *map(len, batches)]).tolist() if counted else None
        self._workers = workers_of(loader)
        self._reader, self._loader, self._digest = reader, loader, network_digest

    def __getstate__(self) -> dict[str, Any]:
        gone = {"_reader": None, "_loader": None}
        return {**vars(self), **gone}

    def parts(self) -> Mapping[str, tuple[str, Any]]:
        network = self._digest or full_network_digest(self._reader.network)
        images = dataset_digest(self._loader)
        return {
            "network": (f"network {network or uuid.uuid4().hex}", self._reader),
            "data set": (f"images {images or uuid.uuid4().hex}", recipe_of(self._loader)),
        }

    def uses(self) -> Iterable[Any]:
        dataset = self._loader.dataset
        return [unwrap(self._reader.network), dataset, self._loader.collate_fn, *vars(dataset).values()]

    def results(
        self, numbers: Sequence[int], parts: Mapping[str, Any], share: Share
    ) -> Generator[Any, None, None]:
        reader, recipe = parts["network"], parts["data set"]
        chosen = [self._batches[number] for number in numbers]
        loader = recipe.loader(chosen, share.count(self._workers))
        for number, batch in zip(numbers, loader, strict=True):
            images, labels = unpack(batch)
            if len(labels) != len(self._batches[number]):
                raise ValueError(
                    f"loader: of {len(self._batches[number])} images its collate_fn made {len(labels)}"
                )
            names, asked = image_names(batch), self._asked
            try:
                encoded = reader.encode(images, asked.perturbations, asked.execution, asked.plain)
            except NotFinite as error:
                raise self._located(error, number, names) from None
            yield self._finish(encoded, labels)

    def _located(self, error: NotFinite, number: int, names: list[str]) -> NotFinite:
        if self._starts is not None:
            return error.located(self._starts[number], names)
        places = [self._batches[number][row] for row in error.rows]
        return NotFinite(error.what, places, [names[row] for row in error.rows] if names else None)


def done(work: Pass, count: int) -> Iterator[Any]:
    """What became of each of ``count`` batches, in order: by all processes of the group that this one directs, or by it."""
    team = active_team()
    if team is None or count < 2:
        parts = {name: value for name, (_, value) in work.parts().items()}
        yield from work.results(range(count), parts, Share())
    else:
        yield from team.do(work, count)


def workers_of(loader: Any) -> int:
    """How many processes read images on one machine, all told: ``OPENOOD_ADASCALE_WORKERS`` or the loader's own.

    Raises:
        SettingError: the variable is no whole number from 0 on.
    """
    chosen = chosen_workers()
    return int(loader.num_workers) if chosen is None else chosen


def chosen_workers() -> int | None:
    """``OPENOOD_ADASCALE_WORKERS``, if it is set.

    Raises:
        SettingError: it is no whole number from 0 on.
    """
    text = os.environ.get(WORKERS, "").strip()
    if text and not text.isdecimal():
        raise SettingError(WORKERS, text, "a whole number from 0 on")
    return int(text) if text else None


def shared_size(size: int, count: int, processes: int, unit: int = 1) -> int:
    """How many of ``count`` images are to be a batch where ``processes`` share them: ``size``, or fewer where each process
    would have but a few batches of that size.

    Args:
        unit: what the fewer are a multiple of.
    """
    if processes == 1 or not 0 < count < size * processes * _ENOUGH:
        return size
    rounds = -(-count // (size * processes))
    wanted = -(-count // (rounds * processes))
    return min(size, -(-wanted // unit) * unit)


def batch_size(reader: Reader, loader: Any, count: int, asked: Asked) -> int:
    """How many of ``count`` images of a loader are to go through the network at a time: as many as it has in a batch, as the
    settings say, or what the processes of the group can share evenly."""
    team, size = active_team(), asked.execution.batch
    if size == "auto":
        gradient = any(p.pixels != "random" for p in asked.perturbations)
        if gradient not in reader.sizes.pays:
            reader.encode(some_images(loader.dataset), asked.perturbations, asked.execution, asked.plain)
        size = reader.sizes.pays[gradient]
    if not isinstance(size, int):
        size = int(loader.batch_size or 1)
    # On a CPU, parts of a batch go through the network, and stay what they are.
    on_cpu = device_of(unwrap(reader.network)).type == "cpu"
    unit = CPU_BATCH * torch.get_num_threads() if on_cpu and asked.execution.batch == "loader" else 1
    return shared_size(size, count, 1 if team is None else team.size, unit)


def balanced(batches: list[list[int]], processes: int) -> list[list[int]]:
    """The same images in the same order, in batches that so many processes can share evenly."""
    images = [image for batch in batches for image in batch]
    size = shared_size(max(map(len, batches), default=1), len(images), processes)
    if size == max(map(len, batches), default=1):
        return batches
    return [images[start : start + size] for start in range(0, len(images), size)]


def shared_batches(reader: Reader, loader: Any) -> list[list[int]] | None:
    """A loader's batches, drawn as it draws them, where the group can share them; None, and a warning, where not."""
    team = active_team()
    if team is None:
        return None
    if reason := _not_shared(reader, loader):
        _warn(team, reason)
        return None
    return list(batches_of(loader))


def _not_shared(reader: Reader, loader: Any) -> str:
    why = "its images are given one after another" if recipe_of(loader) is None else ""
    if not why and not is_deterministic(loader.dataset, image_of):
        why = "its images are random: reading one twice gives two"
    if not why and reader.volatile:
        why = f"the network changes when it is run ({', '.join(sorted(reader.volatile))})"
    if not why and reader.stochastic:
        why = "the network says something else of an image each time"
    return why


def _warn(team: Team, reason: str) -> None:
    warnings.warn(f"loader: one process of {team.size} reads it: {reason}", UserWarning, stacklevel=4)

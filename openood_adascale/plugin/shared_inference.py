"""The images of a loader scored by a postprocessor of OpenOOD's on all processes of a group.

Whether it can be is found out: some images are scored together and by halves; the scores must be the same, and neither the
postprocessor nor the random state may have changed.
"""

from __future__ import annotations

import hashlib
import uuid
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from ..distributed.team import active_team
from ..distributed.work import Share, Work, packed
from ..errors import CannotBeSent
from ..evidence.batch import hidden
from ..evidence.dataset import (
    Recipe,
    batches_of,
    global_random_state,
    image_of,
    is_deterministic,
    recipe_of,
    undisturbed,
)
from ..evidence.fingerprint import dataset_digest
from ..evidence.passes import balanced, workers_of
from .process import say
from .stored_network import StoredNetwork

Scores = tuple[np.ndarray, np.ndarray, np.ndarray]
"""OpenOOD's predictions, confidences and labels, each (N,)."""
_TRIED = 8
"""Images of each of the two batches that a postprocessor is tried on."""
_found: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


class OneBatch:
    """What a loader of a single batch is to ``inference``."""

    def __init__(self, batch: Any, dataset: Any) -> None:
        self._batch, self.dataset = batch, dataset

    def __iter__(self) -> Iterator[Any]:
        yield self._batch

    def __len__(self) -> int:
        return 1


class Inference(Work):
    """Batches of images through a postprocessor's ``inference``, one at a time.

    Args:
        postprocessor: set up, and its network.
        recipe: of the loader.
        batches: which images.
        workers: processes that read images on a machine.
        images: the data set's digest, where it can be told.
    """

    def __init__(
        self,
        postprocessor: Any,
        net: Any,
        recipe: Recipe,
        batches: Sequence[list[int]],
        workers: int,
        images: str | None,
    ) -> None:
        self._method, self._recipe = (postprocessor, net), recipe
        self._batches, self._workers, self._images = batches, workers, images

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_method": None, "_recipe": None}

    def parts(self) -> Mapping[str, tuple[str, Any]]:
        content = packed("postprocessor", self._method)
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        return {
            "postprocessor": (f"postprocessor {digest}", self._method),
            "data set": (f"images {self._images or uuid.uuid4().hex}", self._recipe),
        }

    def uses(self) -> Iterable[Any]:
        return [*self._method, self._recipe.dataset, *vars(self._recipe.dataset).values()]

    def results(
        self, numbers: Sequence[int], parts: Mapping[str, Any], share: Share
    ) -> Generator[Scores, None, None]:
        (postprocessor, net), recipe = parts["postprocessor"], parts["data set"]
        chosen = [self._batches[number] for number in numbers]
        for batch in recipe.loader(chosen, share.count(self._workers)):
            one = OneBatch(batch, recipe.dataset)
            found = postprocessor.inference(net, one, progress=False)
            pred, conf, label = map(np.asarray, found)
            yield pred, conf, label


def infer(
    original: Callable[..., Any], postprocessor: Any, net: Any, loader: Any, progress: bool
) -> Scores | Any:
    """What ``original``, the postprocessor's ``inference``, gives; by all processes, where that is the same."""
    team, recipe = active_team(), recipe_of(loader)
    stored = isinstance(net, StoredNetwork) or not isinstance(net, nn.Module)
    if team is None or recipe is None or stored or len(loader.dataset) <= 2 * _TRIED:
        return original(postprocessor, net, loader, progress)
    if reason := _not_shared(original, postprocessor, net, recipe):
        say(f"{type(postprocessor).__name__}: one process of {team.size} runs it: {reason}")
        return original(postprocessor, net, loader, progress)
    batches = balanced(list(batches_of(loader)), team.size)
    work = Inference(postprocessor, net, recipe, batches, workers_of(loader), dataset_digest(loader))
    parts: list[Scores] = []
    with tqdm(total=sum(map(len, batches)), unit="image", disable=hidden(None if progress else False)) as bar:
        for found in team.do(work, len(batches)):
            parts.append(found)
            bar.update(len(found[1]))
    pred, conf, label = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return pred, conf, label


def _not_shared(original: Callable[..., Any], postprocessor: Any, net: nn.Module, recipe: Recipe) -> str:
    """Why it cannot be shared; found out once for each postprocessor."""
    reason = _found.get(postprocessor)
    if reason is None:
        try:
            reason = _found[postprocessor] = _tried(original, postprocessor, net, recipe)
        except CannotBeSent as error:
            reason = _found[postprocessor] = str(error)
    if not reason and not is_deterministic(recipe.dataset, image_of):
        return "its images are random: reading one twice gives two"
    return reason


def _tried(original: Callable[..., Any], postprocessor: Any, net: nn.Module, recipe: Recipe) -> str:
    count = min(len(recipe.dataset), 2 * _TRIED)
    halves = [list(range(count // 2)), list(range(count // 2, count))]
    before = packed("postprocessor", (postprocessor, net))
    with undisturbed():
        random = global_random_state()
        together = _scores(original, postprocessor, net, recipe.loader(halves, 0))
        if global_random_state() != random:
            return "it draws random numbers"
        apart = [_scores(original, postprocessor, net, recipe.loader([half], 0)) for half in halves]
    if packed("postprocessor", (postprocessor, net)) != before:
        return "scoring changes it or the network"
    for one, other in zip(together, map(np.concatenate, zip(*apart, strict=True)), strict=True):
        if one.shape != (count,) or not np.array_equal(one, other, equal_nan=True):
            return "it does not give each image a score of its own"
    return ""


def _scores(original: Callable[..., Any], postprocessor: Any, net: nn.Module, loader: Any) -> Scores:
    pred, conf, label = map(np.asarray, original(postprocessor, net, loader, False))
    return pred, conf, label

"""OpenOOD's Evaluator on stored activations, for those of its postprocessors that need nothing of an image but z and a.

Whether one does is found out: it is set up on tokens that stand for images, which refuse all but being moved and given
to the network; then some images are scored both ways. Where either fails it is set up anew, on the images, as always.
"""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import StoreError
from ..evidence.dataset import random_states
from ..evidence.fingerprint import full_network_digest
from ..evidence.plan import Execution
from ..evidence.reader import Reader
from ..evidence.rows import rows_of
from ..evidence.sharing import chosen_store, current_store
from .process import say
from .qualification import NEED_IMAGES, disagreement, what_it_keeps
from .stored_images import Refusals
from .stored_network import StoredLoader, StoredNetwork


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
    stored_network: nn.Module
    stored_loaders: Mapping[str, Any]
    inside: int = field(default=0)


class Replay:
    """Has an ``Evaluator`` draw on the store in use, as far as its postprocessor allows.

    Args:
        module: the Evaluator's.
        is_ours: whether a postprocessor, or the name of one, is of this package.
    """

    def __init__(self, module: ModuleType, is_ours: Callable[[Any], bool]) -> None:
        self._module = module
        self._is_ours = is_ours
        self._replayed: weakref.WeakKeyDictionary[Any, Replayed] = weakref.WeakKeyDictionary()
        self._on_images: weakref.WeakKeyDictionary[Any, nn.Module] = weakref.WeakKeyDictionary()

    def construct(
        self, original: Callable[..., None], evaluator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """In place of ``original``, which is ``Evaluator.__init__``."""
        call = inspect.signature(original).bind_partial(evaluator, *args, **kwargs).arguments
        net, given, name = (call.get(key) for key in ("net", "postprocessor", "postprocessor_name"))
        ours = self._is_ours(name if given is None else given)
        store = current_store() if ours else chosen_store()
        if store is None or not isinstance(net, nn.Module):
            original(evaluator, *args, **kwargs)
            return
        call.pop(next(iter(call)))  # self
        if not ours:
            reason = NEED_IMAGES.get(str(name), "") or self._first_try(original, evaluator, call)
            if not reason:
                return
            say(f"{name or type(given).__name__}: run on the images, as always: {reason}", once=False)
        original(evaluator, *args, **kwargs)
        self._on_images[evaluator] = net

    def _first_try(self, original: Callable[..., None], evaluator: Any, call: dict[str, Any]) -> str:
        """Construct on stored activations; why that cannot be, if so, and all is then as it was before."""
        put_back = random_states()
        given = call.get("postprocessor")
        before = None if given is None else _copied(given)
        if given is not None and before is None:
            return "it cannot be copied"
        if reason := self._try(original, evaluator, call):
            put_back()
            if before is not None:
                vars(given).clear()
                vars(given).update(vars(before))
        return reason

    def _try(self, original: Callable[..., None], evaluator: Any, call: dict[str, Any]) -> str:
        net: nn.Module = call["net"]
        digest = full_network_digest(net)
        if digest is None:
            return "it does not show what the network consists of"
        refusals = Refusals()
        stored = StoredNetwork(net, refusals)
        pairs: list[tuple[Any, Any]] = []
        loaders_of = vars(self._module)[
            "get_id_ood_dataloader"
        ]  # today's: data sets of one's own may have come

        def get_id_ood_dataloader(*of: Any, **more: Any) -> Any:
            real = loaders_of(*of, **more)
            found = _stored_loaders(net, digest, real, stored, refusals)
            for path, loader in _leaves(found):
                # Whatever a method's setup asks for, and it may be the training images, can still be refused.
                if path[:2] not in (("id", "train"), ("id", "val"), ("ood", "val")):
                    loader.rows()
            pairs.append((real, found))
            return found

        try:
            with _replaced(self._module, "get_id_ood_dataloader", get_id_ood_dataloader):
                original(evaluator, **{**call, "net": stored})
            real, found = pairs[0]
            network = net if evaluator.net is stored else type(evaluator.net)(net)
            network.eval()
            reason = disagreement(evaluator, network, real, found) or what_it_keeps(evaluator.postprocessor)
        except StoreError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        # What was refused is the reason, whatever came of it.
        if refusals.reason or reason:
            return refusals.reason or reason
        if full_network_digest(net) != digest:
            return "its setup changes the network"
        self._replayed[evaluator] = Replayed(
            net, network, real, digest, evaluator.postprocessor, evaluator.net, found
        )
        evaluator.net, evaluator.dataloader_dict = network, real
        return ""

    def call(
        self,
        name: str,
        original: Callable[..., Any],
        evaluator: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """In place of ``original``, a method of the Evaluator's of this name."""
        kept = self._replayed.get(evaluator)
        if kept is None and name == "_classifier_inference" and evaluator in self._on_images:
            return self._accuracy(original, evaluator, args, kwargs)
        if kept is None or kept.inside:
            return original(evaluator, *args, **kwargs)
        same = (
            evaluator.net is kept.network
            and evaluator.dataloader_dict is kept.loaders
            and evaluator.postprocessor is kept.postprocessor
            and full_network_digest(kept.classifier) == kept.digest
        )
        if not same:
            return original(evaluator, *args, **kwargs)
        evaluator.net, evaluator.dataloader_dict = kept.stored_network, kept.stored_loaders
        kept.inside += 1
        try:
            return original(evaluator, *args, **kwargs)
        finally:
            kept.inside -= 1
            evaluator.net, evaluator.dataloader_dict = kept.network, kept.loaders

    def _accuracy(
        self, original: Callable[..., Any], evaluator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """OpenOOD's accuracy of the network, from the store where it has the images."""
        net = self._on_images[evaluator]
        rows = rows_of(Reader(net), args[0], Execution()) if args and isinstance(net, nn.Module) else None
        own = evaluator.net is net or getattr(evaluator.net, "backbone", None) is net
        if rows is None or not own:
            return original(evaluator, *args, **kwargs)
        refusals = Refusals()
        stored = StoredNetwork(net, refusals)
        loader = StoredLoader(args[0], lambda: rows, stored, refusals, "Accuracy")
        before = evaluator.net
        evaluator.net = stored
        try:
            return original(evaluator, loader, *args[1:], **kwargs)
        finally:
            evaluator.net = before


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _stored_loaders(
    net: nn.Module, digest: str, real: Mapping[str, Any], stored: StoredNetwork, refusals: Refusals
) -> Any:
    """The same tree, of loaders from the store."""
    reader = Reader(net)

    def made(path: str, value: Any) -> Any:
        if isinstance(value, dict):
            found = copy.copy(value)  # its class may have to say what it lacks
            found.update({name: made(f"{path} {name}".strip(), inner) for name, inner in value.items()})
            return found
        find = functools.partial(rows_of, reader, value, Execution(), network_digest=digest)
        return StoredLoader(value, find, stored, refusals, path)

    return made("", real)


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:
        return None


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)

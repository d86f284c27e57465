"""OpenOOD's Evaluator on stored activations, for those of its postprocessors that need nothing of an image but z and a.

Whether one does is found out: it is set up on tokens that stand for images, which refuse all but being moved and given
to the network; then some images are scored both ways. Where either fails it is set up anew, on the images, as always.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import StoreError
from ..evidence.dataset import random_states
from ..evidence.fingerprint import network_digest
from ..evidence.plan import Execution
from ..evidence.reader import Reader
from ..evidence.rows import rows_of
from ..evidence.sharing import chosen_store, current_store
from .changes import Changes
from .process import say
from .qualification import NEED_IMAGES, disagreement, what_it_keeps
from .stored_network import Refusals, StoredLoader, StoredNetwork

MODULE = "openood.evaluation_api.evaluator"


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
    only_accuracy: bool = False
    inside: int = field(default=0)


class EvaluatorReplay:
    """Has OpenOOD's ``Evaluator`` draw on the store that was chosen; inert where none was."""

    def __init__(self, is_ours: Callable[[Any], bool]) -> None:
        self._is_ours = is_ours
        self._changes = Changes()
        self._replayed: weakref.WeakKeyDictionary[Any, Replayed] = weakref.WeakKeyDictionary()

    def enter(self, module: ModuleType) -> None:
        """Take part, if ``module``, which was just executed, is the Evaluator's."""
        if module.__name__ != MODULE:
            return
        cls = vars(module)["Evaluator"]
        loaders_of = vars(module)["get_id_ood_dataloader"]
        self._changes.set(cls, "__init__", self._constructor(module, cls.__init__))
        for name in ("eval_ood", "eval_acc", "hyperparam_search", "_classifier_inference"):
            self._changes.set(cls, name, self._method(name, vars(cls)[name]))
        self._loaders_of = loaders_of

    def undo(self) -> None:
        """Take back everything that was put in place."""
        self._changes.undo()

    def _constructor(self, module: Any, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def __init__(evaluator: Any, net: nn.Module, *args: Any, **kwargs: Any) -> None:
            given = kwargs.get("postprocessor")
            name = kwargs.get("postprocessor_name") or (args[4] if len(args) > 4 else None)
            given = given if given is not None else (args[5] if len(args) > 5 else None)
            ours = self._is_ours(name if given is None else given)
            store = current_store() if ours else chosen_store()
            if store is None or not isinstance(net, nn.Module):
                original(evaluator, net, *args, **kwargs)
                return
            if not ours:
                reason = NEED_IMAGES.get(str(name), "")
                if not reason:
                    put_back = random_states()
                    before = None if given is None else _copied(given)
                    reason = (
                        self._try(module, original, evaluator, net, args, kwargs)
                        if given is None or before is not None
                        else "it cannot be copied"
                    )
                    if not reason:
                        return
                    put_back()
                    if before is not None:
                        vars(given).clear()
                        vars(given).update(vars(before))
                say(f"{name or type(given).__name__}: run on the images, as always: {reason}", once=False)
            original(evaluator, net, *args, **kwargs)
            self._share_accuracy(evaluator, net)

        return __init__

    def _try(
        self,
        module: Any,
        original: Callable[..., None],
        evaluator: Any,
        net: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> str:
        """Construct on stored activations; why that cannot be, if so."""
        refusals = Refusals()
        stored = StoredNetwork(net, refusals)
        pairs: list[tuple[Any, Any]] = []

        def get_id_ood_dataloader(*of: Any, **more: Any) -> Any:
            real = self._loaders_of(*of, **more)
            found = _stored_loaders(net, real, stored, refusals)
            for path, loader in _leaves(found):
                if path[:2] not in (("id", "train"), ("id", "val")) and not isinstance(loader, StoredLoader):
                    refusals.refuse(f"the images of {' '.join(path)} cannot be stored")
            pairs.append((real, found))
            return found

        try:
            with _replaced(module, "get_id_ood_dataloader", get_id_ood_dataloader):
                original(evaluator, stored, *args, **kwargs)
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
        self._replayed[evaluator] = Replayed(
            net, network, real, network_digest(net), evaluator.postprocessor, evaluator.net, found
        )
        evaluator.net, evaluator.dataloader_dict = network, real
        return ""

    def _share_accuracy(self, evaluator: Any, net: nn.Module) -> None:
        refusals = Refusals()
        stored = StoredNetwork(net, refusals)
        real = evaluator.dataloader_dict
        found = _stored_loaders(net, real, stored, refusals)
        self._replayed[evaluator] = Replayed(
            net,
            evaluator.net,
            real,
            network_digest(net),
            evaluator.postprocessor,
            stored,
            found,
            only_accuracy=True,
        )

    def _method(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def method(evaluator: Any, *args: Any, **kwargs: Any) -> Any:
            kept = self._replayed.get(evaluator)
            if kept is None or kept.inside or (kept.only_accuracy and name != "_classifier_inference"):
                return original(evaluator, *args, **kwargs)
            same = (
                evaluator.net is kept.network
                and evaluator.dataloader_dict is kept.loaders
                and evaluator.postprocessor is kept.postprocessor
                and network_digest(kept.classifier) == kept.digest
            )
            if not same:
                return original(evaluator, *args, **kwargs)
            if kept.only_accuracy:
                loader = _stored_loader(kept, args[0] if args else None)
                if loader is None:
                    return original(evaluator, *args, **kwargs)
                args = (loader, *args[1:])
            evaluator.net, evaluator.dataloader_dict = kept.stored_network, kept.stored_loaders
            kept.inside += 1
            try:
                return original(evaluator, *args, **kwargs)
            finally:
                kept.inside -= 1
                evaluator.net, evaluator.dataloader_dict = kept.network, kept.loaders

        return method


def _stored_loader(kept: Replayed, loader: Any) -> StoredLoader | None:
    """What stands in for a loader, if anything."""
    stored = dict(_leaves(kept.stored_loaders))
    for path, value in _leaves(kept.loaders):
        if value is loader and isinstance(stored[path], StoredLoader):
            found: StoredLoader = stored[path]
            return found
    return None


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _stored_loaders(
    net: nn.Module, real: Mapping[str, Any], stored: StoredNetwork, refusals: Refusals
) -> Any:
    """The same tree; loaders whose images cannot be shared are as they were, and their images refused."""
    reader = Reader(net)

    def made(path: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: made(f"{path} {name}".strip(), inner) for name, inner in value.items()}
        rows = rows_of(reader, value, Execution())
        return value if rows is None else StoredLoader(value, rows, stored, refusals, path)

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

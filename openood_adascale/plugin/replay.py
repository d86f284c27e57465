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
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import Changed, ProcessLost, StoreError
from ..evidence.dataset import random_states
from ..evidence.fingerprint import full_network_digest
from ..evidence.plan import Execution
from ..evidence.reader import Reader
from ..evidence.rows import rows_of
from ..evidence.sharing import VARIABLE, chosen_store, current_store
from .process import say
from .qualification import DISAGREES, NEED_IMAGES, disagreement, what_it_keeps
from .replayed import Replayed, identities, leaves, to_be_put_back
from .stored_images import NeedsMore, Refusals
from .stored_loader import StoredLoader
from .stored_network import StoredNetwork


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
        reason = ""
        if not ours:
            reason = NEED_IMAGES.get(str(name), "") or self._first_try(original, evaluator, call)
            if not reason:
                return
            _say_on_images(str(name or type(given).__name__), reason)
        original(evaluator, *args, **kwargs)
        if not reason.startswith(DISAGREES):
            self._on_images[evaluator] = net

    def _first_try(self, original: Callable[..., None], evaluator: Any, call: dict[str, Any]) -> str:
        """Construct on stored activations; why that cannot be, if so, and all is then as it was before."""
        draw_again, put_back = random_states(), to_be_put_back(call.get("postprocessor"))
        if put_back is None:
            return "it cannot be copied"
        if reason := self._try(original, evaluator, call):
            draw_again()
            put_back()
            return reason

        def anew() -> None:
            draw_again()
            put_back()
            original(evaluator, **call)

        self._replayed[evaluator].anew = anew
        return ""

    def _try(self, original: Callable[..., None], evaluator: Any, call: dict[str, Any]) -> str:
        net: nn.Module = call["net"]
        digest = full_network_digest(net)
        if digest is None:
            return "it does not show what the network consists of"
        refusals = Refusals()
        stored = StoredNetwork(net, refusals)
        pairs: list[tuple[Any, Any]] = []
        # Today's: data sets of one's own may have come.
        loaders_of = vars(self._module)["get_id_ood_dataloader"]

        def get_id_ood_dataloader(*of: Any, **more: Any) -> Any:
            real = loaders_of(*of, **more)
            found = _stored_loaders(net, digest, real, stored, refusals)
            for path, loader in leaves(found):
                # Whatever a method's setup asks for, and it may be the training images, can still be refused.
                if path[:2] not in (("id", "train"), ("id", "val"), ("ood", "val")):
                    loader.rows()
            pairs.append((real, found))
            return found

        reason = ""
        try:
            with _replaced(self._module, "get_id_ood_dataloader", get_id_ood_dataloader):
                original(evaluator, **{**call, "net": stored})
            stored.require_unchanged()
            if full_network_digest(net) != digest:
                return "its setup changes the network"
            real, found = pairs[0]
            network = net if evaluator.net is stored else type(evaluator.net)(net)
            network.eval()
            reason = disagreement(evaluator, network, real, found) or what_it_keeps(evaluator.postprocessor)
            stored.require_unchanged()
        except Changed as error:
            reason = str(error)
        except (StoreError, ProcessLost):
            raise
        except NeedsMore:
            pass
        except Exception as error:
            reason = f"with stored activations it fails ({type(error).__name__}: {error})"
        # What was refused is the reason, whatever came of it.
        if refusals.reason or reason:
            return refusals.reason or reason
        name = str(call.get("postprocessor_name") or type(evaluator.postprocessor).__name__)
        self._replayed[evaluator] = Replayed(
            net, network, real, digest, evaluator.postprocessor, stored, evaluator.net, found, refusals, name
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
        if kept is None or kept.inside or not kept.is_of(evaluator):
            return original(evaluator, *args, **kwargs)
        draw_again, as_before = random_states(), identities(kept.postprocessor) == kept.attributes
        evaluator.net, evaluator.dataloader_dict = kept.stored_network, kept.stored_loaders
        kept.inside += 1
        try:
            found = original(evaluator, *args, **kwargs)
            kept.stored.require_unchanged()
        except (StoreError, ProcessLost):
            raise
        except Exception:
            if not kept.refusals.reason:
                raise
        finally:
            kept.inside -= 1
            evaluator.net, evaluator.dataloader_dict = kept.network, kept.loaders
        if not kept.refusals.reason:
            kept.note()
            return found
        # It asks for more only now.
        if not as_before:
            raise StoreError(
                f"{kept.name} was changed after the Evaluator was made, and needs more than stored activations "
                f"({kept.refusals.reason}); expected an Evaluator made anew, with {VARIABLE}=off"
            )
        _say_on_images(kept.name, kept.refusals.reason)
        del self._replayed[evaluator]
        kept.anew()
        draw_again()
        return original(evaluator, *args, **kwargs)

    def _accuracy(
        self, original: Callable[..., Any], evaluator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """OpenOOD's accuracy of the network, from the store where it has the images."""
        net = self._on_images[evaluator]
        rows = rows_of(Reader(net), args[0], Execution()) if args and isinstance(net, nn.Module) else None
        wrapper = type(evaluator.net).__module__.startswith("openood.")
        own = evaluator.net is net or (wrapper and getattr(evaluator.net, "backbone", None) is net)
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


def _say_on_images(name: str, reason: str) -> None:
    say(f"{name}: run on the images, as always: {reason}", once=False)


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)

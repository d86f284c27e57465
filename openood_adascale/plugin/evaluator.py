"""OpenOOD's Evaluator, with this package taking part. Imports only the standard library until an Evaluator is made."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .changes import Changes
from .own_names import OwnNames
from .process import say

if TYPE_CHECKING:
    from .replay import Replay

MODULE = "openood.evaluation_api.evaluator"
METHODS = ("eval_ood", "eval_acc", "hyperparam_search", "_classifier_inference")


class EvaluatorPatch:
    """Has OpenOOD's ``Evaluator`` draw on stored activations, see :mod:`~.replay`.

    Args:
        is_ours: whether a postprocessor, or the name of one, is of this package.
        names: the data sets of one's own.
    """

    def __init__(self, is_ours: Callable[[Any], bool], names: OwnNames) -> None:
        self._is_ours = is_ours
        self._names = names
        self._changes = Changes()
        self._replay: Replay | None = None
        self._broken = False
        self.listeners: list[Callable[[Any], Any]] = []
        """What is told the table that every ``eval_ood`` has found."""

    def enter(self, module: ModuleType) -> None:
        """Take part, if ``module``, which was just executed, is the Evaluator's. The caller holds the plugin's lock."""
        if module.__name__ != MODULE or self._changes:
            return
        cls: Any = vars(module)["Evaluator"]
        if "get_id_ood_dataloader" not in vars(module):
            raise AttributeError("this OpenOOD has no 'get_id_ood_dataloader' there")
        originals = {name: vars(cls)[name] for name in METHODS}
        self._changes.set(cls, "__init__", self._constructor(module, cls.__init__))
        for name, original in originals.items():
            self._changes.set(cls, name, self._method(name, original))

    def within(self, evaluator: Any, function: Callable[[Any], Any]) -> Any:
        """``function(evaluator)``, called as a method of the Evaluator's: where its postprocessor is served from stored
        activations, its network and loaders are those that give them."""
        if self._replay is None:
            return function(evaluator)
        return self._replay.call("eval_ood", function, evaluator, (), {})

    def undo(self) -> None:
        """Take back everything that was put in place. The caller holds the plugin's lock."""
        self._changes.undo()
        self._replay = None

    def _constructor(self, module: ModuleType, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def __init__(evaluator: Any, *args: Any, **kwargs: Any) -> None:
            self._names.prepare(kwargs.get("id_name", args[1] if len(args) > 1 else None))
            replay = self._loaded(module)
            if replay is None:
                original(evaluator, *args, **kwargs)
            else:
                args, kwargs = _with_workers(original, evaluator, args, kwargs)
                replay.construct(original, evaluator, args, kwargs)

        return __init__

    def _method(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def method(evaluator: Any, *args: Any, **kwargs: Any) -> Any:
            if _wants_csid(name, args, kwargs):
                self._names.require_csid(getattr(evaluator, "id_name", None))
            if self._replay is None:
                found = original(evaluator, *args, **kwargs)
            else:
                found = self._replay.call(name, original, evaluator, args, kwargs)
            if name == "eval_ood":
                for listener in self.listeners:
                    listener(found)
            return found

        return method

    def _loaded(self, module: ModuleType) -> Replay | None:
        """None, and said, where this package does not load; OpenOOD then works as without it."""
        if self._replay is None and not self._broken:
            try:
                from .replay import Replay

                self._is_ours("")
                self._replay = Replay(module, self._is_ours)
            except ImportError:  # which was said already when OpenOOD's tables were to be entered
                self._broken = True
            except Exception as error:
                self._broken = True
                say(
                    f"cannot take part in {MODULE}, which works as without this package: {type(error).__name__}: {error}"
                )
        return self._replay


def _with_workers(
    original: Callable[..., None], evaluator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, with the processes that read images as the user has chosen them for all loaders."""
    from ..evidence.passes import chosen_workers

    workers = chosen_workers()
    if workers is None:
        return args, kwargs
    bound = inspect.signature(original).bind_partial(evaluator, *args, **kwargs)
    bound.arguments["num_workers"] = workers
    return bound.args[1:], bound.kwargs


def _wants_csid(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of this method of the Evaluator's asks for covariate-shifted images."""
    if name == "eval_ood":
        return bool(kwargs.get("fsood", args[0] if args else False))
    return name == "eval_acc" and kwargs.get("data_name", args[0] if args else None) == "csid"

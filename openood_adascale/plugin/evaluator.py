"""Wrappers around OpenOOD's ``Evaluator``: custom datasets, cached features, accuracy. Imports only the standard library."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from .import_hook import DATASETS_VARIABLE, Changes, say

WORKERS_VARIABLE = "OPENOOD_ADASCALE_WORKERS"
POOL_VARIABLE = "OPENOOD_ADASCALE_RAY"
METHODS = ("eval_ood", "eval_acc", "hyperparam_search", "_classifier_inference")
FUNCTIONS = {
    "get_default_preprocessor": "data_name",
    "data_setup": "id_data_name",
    "get_id_ood_dataloader": "id_name",
}
"""Functions that the ``Evaluator`` calls for a dataset, and their parameter with its name."""

_replaced_loaders: ContextVar[Callable[[Any], Any] | None] = ContextVar("replaced_loaders", default=None)
"""Replacement of the loaders of the ``Evaluator`` that is being made."""
_sessions: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_listeners: list[list[Any]] = []


@contextmanager
def collected_tables(tables: list[Any]) -> Iterator[None]:
    """Append the tables of OpenOOD's ``Evaluator`` to ``tables`` inside the ``with`` block."""
    _listeners.append(tables)
    try:
        yield
    finally:
        _listeners.remove(tables)


def patch(module: ModuleType, changes: Changes) -> None:
    """Wrap the ``Evaluator`` in its module, which was just executed."""
    cls: Any = vars(module)["Evaluator"]
    if hasattr(cls.__init__, "__openood_adascale__"):
        return
    wrappers = {name: _method(name, vars(cls)[name]) for name in METHODS}
    wrappers["__init__"] = _constructor(module, cls.__init__)
    functions = {name: _function(vars(module)[name], parameter) for name, parameter in FUNCTIONS.items()}
    for name, wrapper in wrappers.items():
        changes.set(cls, name, wrapper)
    for name, wrapper in functions.items():
        changes.set(module, name, wrapper)


def patch_inference(module: ModuleType, changes: Changes) -> None:
    """Wrap ``inference`` of OpenOOD's base class, so that a pool of workers is used if there is one."""
    cls: Any = vars(module)["BasePostprocessor"]
    original = vars(cls)["inference"]
    if hasattr(original, "__openood_adascale__"):
        return

    @functools.wraps(original)
    def inference(self: Any, net: Any, data_loader: Any, progress: bool = True) -> Any:
        pool: Any = sys.modules.get("openood_adascale.parallel.pool")
        chosen = pool is not None and pool.CHOSEN.get(None) is not None
        if type(self).__name__.endswith("Postprocessor") and (chosen or os.environ.get(POOL_VARIABLE)):
            from .pooled import ONE_SCORE_PER_IMAGE, infer

            if type(self).__name__ in ONE_SCORE_PER_IMAGE and type(self).__module__.startswith("openood."):
                return infer(original, self, net, data_loader, progress)
        return original(self, net, data_loader, progress)

    wrapper: Any = inference
    wrapper.__openood_adascale__ = True
    changes.set(cls, "inference", inference)


def _constructor(module: ModuleType, original: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def constructor(evaluator: Any, *args: Any, **kwargs: Any) -> None:
        try:
            call = signature.bind(evaluator, *args, **kwargs).arguments
        except TypeError:
            original(evaluator, *args, **kwargs)
            return
        call.pop(next(iter(call)))  # self
        if (datasets := _datasets()) is not None:
            datasets.prepare(call.get("id_name"), module)
        _mention_adascale(call.get("postprocessor_name"))
        if os.environ.get(WORKERS_VARIABLE, "").strip():
            from ..features.indexed import chosen_workers

            call["num_workers"] = chosen_workers()
        if not _uses_cache(call.get("net")):
            original(evaluator, **call)
            return
        from .feature_net import construct

        _sessions[evaluator] = construct(original, evaluator, call, _replaced_loaders)

    wrapper: Any = constructor
    wrapper.__openood_adascale__ = True
    return constructor


def _method(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(evaluator: Any, *args: Any, **kwargs: Any) -> Any:
        datasets, session = _datasets(), _sessions.get(evaluator)
        if datasets is not None and _wants_csid(name, args, kwargs):
            datasets.require_csid(getattr(evaluator, "id_name", None))
        if name == "_classifier_inference" and (plain := _plain_predictions(evaluator, *args)) is not None:
            return plain
        if session is None:
            found = original(evaluator, *args, **kwargs)
        else:
            found = session.call(functools.partial(original, **kwargs), evaluator, args, name)
        if name == "eval_ood":
            for tables in _listeners:
                tables.append(found)
        return found

    return method


def _function(original: Callable[..., Any], parameter: str) -> Callable[..., Any]:
    """Wrap a function of :data:`FUNCTIONS` so that it knows custom datasets."""
    signature = inspect.signature(original)
    if parameter not in signature.parameters:
        raise TypeError(f"{original.__name__}() has no parameter {parameter!r}")

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        datasets = _datasets()
        call = signature.bind(*args, **kwargs).arguments
        if datasets is not None and call[parameter] in datasets:
            found = getattr(datasets, original.__name__)(**call)
        else:
            found = original(*args, **kwargs)
        replace = _replaced_loaders.get() if original.__name__ == "get_id_ood_dataloader" else None
        return found if replace is None else replace(found)

    return function


def _uses_cache(net: Any) -> bool:
    """Return True if a feature cache is in use, for a real network."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(net, torch.nn.Module):
        return False
    from ..features.cache import current_cache

    return current_cache() is not None


def _plain_predictions(evaluator: Any, loader: Any = None, *rest: Any) -> Any:
    """Return predictions and labels that a postprocessor of this package has seen in its pass over ``loader``."""
    known = getattr(evaluator.postprocessor, "plain_predictions", None)
    found = None if known is None else known(evaluator.net, loader)
    return None if found is None else tuple(map(sys.modules["torch"].from_numpy, found))


def _datasets() -> Any:
    """Return the custom datasets (None, without an import, if there are none)."""
    if (
        not os.environ.get(DATASETS_VARIABLE, "").strip()
        and f"{__package__}.custom_dataset" not in sys.modules
    ):
        return None
    from .custom_dataset import DATASETS

    return DATASETS


def _wants_csid(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return True if a call of an ``Evaluator``'s method needs covariate-shifted images."""
    if name == "eval_ood":
        return bool(kwargs.get("fsood", args[0] if args else False))
    return name == "eval_acc" and kwargs.get("data_name", args[0] if args else None) == "csid"


def _mention_adascale(name: Any) -> None:
    """Say once that this package has OpenOOD's AdaSCALE with a faster search."""
    ours = {"adascale_a": "adascale", "adascale_l": "adascale_logit"}.get(name)
    if ours is not None:
        say(
            f"{name} is OpenOOD's own; {ours} gives the same with its search in one pass (k1 and k2 are exchanged: "
            f"k1_list: [5], k2_list: [1] of {name} is k1: 1, k2: 5 of {ours})"
        )

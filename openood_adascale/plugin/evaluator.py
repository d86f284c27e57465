"""Wrappers around OpenOOD's ``Evaluator``: custom datasets, cached features, accuracy. Imports only the standard library."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from .import_hook import DATASETS_VARIABLE, REPLACED_LOADERS, Changes, say

WORKERS_VARIABLE = "OPENOOD_ADASCALE_WORKERS"
POOL_VARIABLE = "OPENOOD_ADASCALE_RAY"
MARK = "__openood_adascale__"
"""Attribute of this package's wrappers."""
_METHODS = ("eval_ood", "eval_acc", "hyperparam_search", "_classifier_inference")
_FUNCTIONS = {
    "get_default_preprocessor": "data_name",
    "data_setup": "id_data_name",
    "get_id_ood_dataloader": "id_name",
}
"""Functions that the ``Evaluator`` calls for a dataset, and their parameter with its name."""
_OWN_ADASCALE = {"adascale_a": "adascale", "adascale_l": "adascale_logit"}

_sessions: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_listeners: list[list[Any]] = []


@contextmanager
def collected_results(results: list[Any]) -> Iterator[None]:
    """Append an ``Evaluation`` for each ``eval_ood`` of OpenOOD's ``Evaluator`` inside the ``with`` block."""
    _listeners.append(results)
    try:
        yield
    finally:
        _listeners.remove(results)


def marked(wrapper: Any) -> Any:
    """Return ``wrapper`` with the mark of this package's wrappers."""
    setattr(wrapper, MARK, True)
    return wrapper


def patch(module: ModuleType, changes: Changes) -> None:
    """Wrap the ``Evaluator`` in its module, which was just executed."""
    cls = module.Evaluator
    if hasattr(cls.__init__, MARK):
        return
    functions = {name: _function(vars(module)[name], parameter) for name, parameter in _FUNCTIONS.items()}
    methods = {name: _method(name, vars(cls)[name]) for name in _METHODS}
    methods["__init__"] = _constructor(module, cls.__init__)
    for owner, wrappers in ((cls, methods), (module, functions)):
        for name, wrapper in wrappers.items():
            changes.set(owner, name, marked(wrapper))


def patch_inference(module: ModuleType, changes: Changes) -> None:
    """Wrap ``inference`` of OpenOOD's base class, so that a pool of workers is used if there is one."""
    cls = module.BasePostprocessor
    original = vars(cls)["inference"]
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def inference(self: Any, net: Any, data_loader: Any, progress: bool = True) -> Any:
        pool: Any = sys.modules.get("openood_adascale.parallel.pool")
        if os.environ.get(POOL_VARIABLE) or (pool is not None and pool.CHOSEN.get(None) is not None):
            from .pooled import ONE_SCORE_PER_IMAGE, infer

            if type(self).__name__ in ONE_SCORE_PER_IMAGE and type(self).__module__.startswith("openood."):
                return infer(original, self, net, data_loader, progress)
        return original(self, net, data_loader, progress)

    changes.set(cls, "inference", marked(inference))


def _constructor(module: ModuleType, original: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``Evaluator.__init__`` so that it knows custom datasets and uses the feature cache."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def constructor(evaluator: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(evaluator, *args, **kwargs)
        bound.apply_defaults()
        call = bound.arguments
        call.pop(next(iter(call)))  # self
        if (datasets := _datasets()) is not None:
            datasets.prepare(call.get("id_name"), module)
        if name := call.get("postprocessor_name"):
            _names[evaluator] = name
        if name in _OWN_ADASCALE:
            _mention_adascale(name)
        if hasattr(call.get("postprocessor"), "config_root"):  # one of this package's, from an earlier run
            call["postprocessor"].config_root = call.get("config_root")
        if os.environ.get(WORKERS_VARIABLE, "").strip():
            from ..features.indexed import chosen_workers

            call["num_workers"] = chosen_workers()
        if (cache := _cache_for(call.get("net"))) is None:
            original(evaluator, **call)
            return
        from .feature_net import Session

        _sessions[evaluator] = session = Session(call["net"], cache)
        session.construct(original, evaluator, call)

    return constructor


def _method(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of :data:`_METHODS` so that it uses cached features and known predictions."""

    @functools.wraps(original)
    def method(evaluator: Any, *args: Any, **kwargs: Any) -> Any:
        datasets, session = _datasets(), _sessions.get(evaluator)
        full_spectrum = _wants_csid(name, args, kwargs)
        if datasets is not None and full_spectrum:
            datasets.require_csid(getattr(evaluator, "id_name", None))
        if name == "_classifier_inference" and (found := _known_predictions(evaluator, session, *args)):
            return found
        call = functools.partial(original, evaluator, *args, **kwargs)
        if name == "eval_ood" and _listeners:
            from .results import evaluated, record_orders

            record_orders(evaluator, full_spectrum)
        found = call() if session is None else session.call(call, evaluator)
        if name == "eval_ood" and _listeners:
            postprocessor = _names.get(evaluator) or type(evaluator.postprocessor).__name__
            _listeners[-1].append(evaluated(evaluator, postprocessor, found, full_spectrum))
        return found

    return method


def _function(original: Callable[..., Any], parameter: str) -> Callable[..., Any]:
    """Wrap a function of :data:`_FUNCTIONS` so that it knows custom datasets."""
    signature = inspect.signature(original)
    if parameter not in signature.parameters:
        raise TypeError(f"{original.__name__}() has no parameter {parameter!r}")

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        datasets = _datasets()
        call = signature.bind(*args, **kwargs).arguments
        custom = datasets is not None and call[parameter] in datasets
        found = getattr(datasets, original.__name__)(**call) if custom else original(*args, **kwargs)
        replace = REPLACED_LOADERS.get() if original.__name__ == "get_id_ood_dataloader" else None
        return found if replace is None else replace(found)

    return function


def _cache_for(net: Any) -> Any:
    """Return the feature cache in use, for a real network."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(net, torch.nn.Module):
        return None
    from ..features.cache import current_cache

    return current_cache()


def _known_predictions(evaluator: Any, session: Any, loader: Any = None, *rest: Any) -> Any:
    """Return predictions and labels that a pass over ``loader`` has found already (None if there was none)."""
    plain_predictions = getattr(getattr(evaluator, "postprocessor", None), "plain_predictions", None)
    if plain_predictions and (found := plain_predictions(evaluator.net, loader)) is not None:
        return found
    return None if session is None else session.plain_predictions(evaluator, loader)


def _datasets() -> Any:
    """Return the custom datasets (None, without an import, if there are none)."""
    loaded = f"{__package__}.custom_dataset" in sys.modules
    if not loaded and not os.environ.get(DATASETS_VARIABLE, "").strip():
        return None
    from .custom_dataset import DATASETS

    return DATASETS


def _wants_csid(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return True if a call of an ``Evaluator``'s method needs covariate-shifted images."""
    if name == "eval_ood":
        return bool(kwargs.get("fsood", args[0] if args else False))
    return name == "eval_acc" and kwargs.get("data_name", args[0] if args else None) == "csid"


def _mention_adascale(name: str) -> None:
    """Say once that this package has OpenOOD's AdaSCALE with a faster search."""
    ours = _OWN_ADASCALE[name]
    say(
        f"{name} is OpenOOD's own; {ours} gives the same with its search in one pass (k1 and k2 are exchanged: "
        f"k1_list: [5], k2_list: [1] of {name} is k1: 1, k2: 5 of {ours})"
    )

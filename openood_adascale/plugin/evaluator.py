"""Wrappers around OpenOOD's ``Evaluator``: custom datasets, cached features, accuracy. Imports only the standard library."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from .import_hook import DATASETS_VARIABLE, MARK, Changes, say

FROM_FEATURES = (
    "msp", "mls", "ebo", "gen", "klm", "temp_scaling", "gradnorm", "react", "ash", "scale", "vra", "dice", "she", "knn",
    "nnguide", "fdbd", "nci", "relation", "residual", "vim", "mds", "rmds", "cfood",
)  # fmt: skip
"""OpenOOD's postprocessors that need features only; a test compares each with its run on the images."""

WORKERS_VARIABLE = "OPENOOD_ADASCALE_WORKERS"
POOL_VARIABLE = "OPENOOD_ADASCALE_RAY"
CACHE_VARIABLE = "OPENOOD_ADASCALE_CACHE_DIR"
_SERVED = f"{MARK}features"
_METHODS = ("eval_ood", "eval_acc", "hyperparam_search", "_classifier_inference")
_FUNCTIONS = {
    "get_default_preprocessor": "data_name",
    "data_setup": "id_data_name",
    "get_id_ood_dataloader": "id_name",
}
"""Functions that the ``Evaluator`` calls for a dataset, and their parameter with its name."""
_OWN_ADASCALE = {"adascale_a": "adascale", "adascale_l": "adascale_logit"}

_caches: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""Feature cache of each ``Evaluator``, which keeps the fingerprints that it has computed."""
_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_listeners: list[list[Any]] = []
_SERVING: ContextVar[bool] = ContextVar("serving", default=False)


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
        with _cache_in_use(evaluator):
            if evaluator in _caches:
                _say_images(call)
            original(evaluator, **call)

    return constructor


def _method(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of :data:`_METHODS` so that it uses cached features and known predictions."""

    @functools.wraps(original)
    def method(evaluator: Any, *args: Any, **kwargs: Any) -> Any:
        datasets = _datasets()
        full_spectrum = _wants_csid(name, args, kwargs)
        if datasets is not None and full_spectrum:
            datasets.require_csid(getattr(evaluator, "id_name", None))
        orders: AbstractContextManager[None] = nullcontext()
        if name == "eval_ood" and _listeners:
            from .results import evaluated, recorded_orders

            orders = recorded_orders(evaluator, full_spectrum)
        with orders, _cache_in_use(evaluator):
            found = _known_predictions(evaluator, *args) if name == "_classifier_inference" else None
            found = original(evaluator, *args, **kwargs) if found is None else found
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
        return getattr(datasets, original.__name__)(**call) if custom else original(*args, **kwargs)

    return function


def patch_postprocessors(table: Mapping[str, type], changes: Changes) -> None:
    """Wrap OpenOOD's postprocessors that need features only, so that they run on cached features if there is a cache."""
    for name in FROM_FEATURES:
        cls: Any = table.get(name)
        for method in ("setup", "inference"):
            if cls is not None and not hasattr(vars(cls).get(method), _SERVED):
                changes.set(cls, method, _on_features(cls, name, getattr(cls, method)))


def _on_features(cls: type, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(postprocessor: Any, net: Any, *args: Any, **kwargs: Any) -> Any:
        if type(postprocessor) is not cls or not _SERVING.get():
            return original(postprocessor, net, *args, **kwargs)
        from .feature_net import on_features

        return on_features(original, name, postprocessor, net, *args, **kwargs)

    setattr(method, _SERVED, True)
    return method


@contextmanager
def serving(cache: Any) -> Iterator[None]:
    """Use a feature cache, and run OpenOOD's feature-based postprocessors on it, inside the ``with`` block."""
    from ..features.cache import feature_cache

    token = _SERVING.set(True)
    try:
        with feature_cache(cache):
            yield
    finally:
        _SERVING.reset(token)


def _cache_in_use(evaluator: Any) -> AbstractContextManager[None]:
    """Serve all calls of an ``Evaluator`` from the feature cache that was in use at the first of them."""
    module = sys.modules.get("openood_adascale.features.cache")
    if evaluator not in _caches and (module or os.environ.get(CACHE_VARIABLE, "").strip()):
        from ..features.cache import current_cache

        if (cache := current_cache()) is not None:
            _caches[evaluator] = cache
    return serving(_caches[evaluator]) if evaluator in _caches else nullcontext()


def _say_images(call: Mapping[str, Any]) -> None:
    """Print a line if the postprocessor of an ``Evaluator`` cannot run on cached features."""
    table = sys.modules["openood.evaluation_api.postprocessor"].postprocessors
    given, name = call.get("postprocessor"), call.get("postprocessor_name")
    kind = table.get(name) if given is None else type(given)
    served = any(table.get(one) is kind for one in FROM_FEATURES)
    if kind is not None and not served and not kind.__module__.startswith("openood_adascale."):
        reason = "it is not in the list of postprocessors that need features only"
        say(f"{name or kind.__name__}: runs on the images: {reason}", once=False)


def _known_predictions(evaluator: Any, loader: Any = None, *rest: Any) -> Any:
    """Return predictions and labels that a pass over ``loader`` has found already (None if there was none)."""
    known = getattr(getattr(evaluator, "postprocessor", None), "plain_predictions", None)
    found = known(evaluator.net, loader) if known else None
    if found is None and evaluator in _caches:
        from .feature_net import plain_predictions

        found = plain_predictions(evaluator.net, loader)
    return found


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

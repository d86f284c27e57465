"""OpenOOD's evaluation protocol for one or many methods, without OpenOOD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
from torch import nn

from ..detectors.base import Detector
from ..errors import SettingError
from ..features.border import check_network
from ..features.cache import CacheDir, feature_cache
from ..features.modes import evaluating
from .accuracy import accuracy
from .benchmark import Benchmark
from .one_pass import AnyDetector, ImageCollector, OnePass
from .postprocessors import Postprocessor, check, infer, is_postprocessor, prepare
from .result import Result, TestValues, result_of

AnyMethod: TypeAlias = AnyDetector | Postprocessor


@overload
def evaluate(
    method: AnyMethod,
    benchmark: Benchmark,
    network: nn.Module | None = None,
    *,
    search: bool | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    full_spectrum: bool = False,
    known_accuracy: float | None = None,
    progress: bool | None = None,
    cache_dir: CacheDir = None,
    cache_tag: str | None = None,
) -> Result: ...


@overload
def evaluate(
    method: Mapping[str, AnyMethod],
    benchmark: Benchmark,
    network: nn.Module | None = None,
    *,
    search: bool | None = None,
    sweep: None = None,
    full_spectrum: bool = False,
    known_accuracy: float | None = None,
    progress: bool | None = None,
    cache_dir: CacheDir = None,
    cache_tag: str | None = None,
) -> dict[str, Result]: ...


def evaluate(
    method: AnyMethod | Mapping[str, AnyMethod],
    benchmark: Benchmark,
    network: nn.Module | None = None,
    *,
    search: bool | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    full_spectrum: bool = False,
    known_accuracy: float | None = None,
    progress: bool | None = None,
    cache_dir: CacheDir = None,
    cache_tag: str | None = None,
) -> Result | dict[str, Result]:
    """Search or fit on validation images, then score every near and far set.

    >>> results = evaluate({"MSP": MSP(network), "AdaSCALE-A": AdaSCALE(network)}, benchmark)      # one pass for both
    >>> list(results["AdaSCALE-A"].table.index)
    ['wolves', 'nearood', 'textures', 'farood']
    >>> result = evaluate(AdaSCALE(network, k2=50), benchmark, search=False)

    Each image goes through a network once for all detectors with the same inference settings, and for the accuracy.

    Args:
        method: A :class:`~openood_adascale.detectors.base.Detector`, or an object with OpenOOD's postprocessor methods
            (``setup``, ``inference`` and, to search, ``APS_mode``, ``args_dict``, ``set_hyperparam``); or several by name,
            whose results are returned by name. A fitted detector is not fitted again.
        benchmark: The loaders.
        network: Network of a postprocessor without an attribute ``network``. A detector has its own.
        search: Search the hyperparameters on ``val`` and ``ood_val`` if the method has any (default: if ``sweep`` is given,
            or the detector is not fitted yet).
        sweep: Sweep of a single detector (default: its own).
        full_spectrum: Count the benchmark's covariate-shifted sets as ID (OpenOOD's ``--fsood``).
        known_accuracy: ACC in percent, or ``math.nan`` to leave it out (default: computed over the labelled ID test images;
            a warning tells of unlabelled ones).
        progress: True or False shows or hides the progress bars (default: shown in a terminal).
        cache_dir: Directory of a feature cache, so that a later evaluation runs no network (default: the cache in use, else
            ``OPENOOD_ADASCALE_CACHE_DIR``); False for none.
        cache_tag: See :func:`~openood_adascale.features.cache.feature_cache`.

    Raises:
        TypeError: Another network than a method's own, none for a postprocessor, or a mapping of anything else than
            methods by name.
        ValueError: Missing or empty loaders, scores that are not finite, or test images without a label; names the set.
        UnsupportedNetworkError: A network that cannot be used; see :mod:`~openood_adascale.features.border`.
        SettingError: Labels that are no classes of the network, an invalid sweep, an empty mapping, or ``full_spectrum``
            without covariate-shifted sets.
        CacheError: The cache cannot be read or written.
    """
    with feature_cache(cache_dir, cache_tag):
        return _evaluate(method, benchmark, network, search, sweep, full_spectrum, known_accuracy, progress)


def _evaluate(
    method: AnyMethod | Mapping[str, AnyMethod],
    benchmark: Benchmark,
    network: nn.Module | None,
    search: bool | None,
    sweep: Mapping[str, Sequence[Any]] | None,
    full_spectrum: bool,
    known_accuracy: float | None,
    progress: bool | None,
) -> Result | dict[str, Result]:
    _check(method, benchmark, network, search, sweep, full_spectrum)
    methods: Mapping[str, AnyMethod] = method if isinstance(method, Mapping) else {"": method}
    detectors = {name: one for name, one in methods.items() if isinstance(one, Detector)}
    sweeps = {} if sweep is None else {"": sweep}
    accuracies: dict[int, float] = {}
    found = _evaluate_detectors(
        detectors, benchmark, search, sweeps, full_spectrum, known_accuracy, progress, accuracies
    )
    for name, one in methods.items():
        if not isinstance(one, Detector):
            own = _network_of(one, network)
            known = known_accuracy if known_accuracy is not None else accuracies.get(id(own))
            found[name], accuracies[id(own)] = _evaluate_postprocessor(
                one, own, benchmark, search is not False, full_spectrum, known, progress
            )
    return {name: found[name] for name in methods} if isinstance(method, Mapping) else found[""]


def _check(
    method: AnyMethod | Mapping[str, AnyMethod],
    benchmark: Benchmark,
    network: nn.Module | None,
    search: bool | None,
    sweep: Mapping[str, Sequence[Any]] | None,
    full_spectrum: bool,
) -> None:
    """Check before any pass that the network can be used and the arguments go together."""
    methods = _several(method) if isinstance(method, Mapping) else [method]
    for one in methods:
        own = _network_of(one, network)
        if network is not None and network is not own:
            raise TypeError(
                f"network: this {type(network).__name__} is not the one that {type(one).__name__} has; "
                "expected None, or the method's own"
            )
        check_network(own)
        if not isinstance(one, Detector):
            with evaluating(own):
                check(one, benchmark, search is not False)
    if sweep is not None and (search is False or not isinstance(method, Detector)):
        other = f"{type(method).__name__}, which has a sweep of its own"
        if isinstance(method, Mapping):
            other = "several detectors, each of which has its default_sweep"
        raise SettingError("sweep", sweep, f"None with {'search=False' if search is False else other}")
    if full_spectrum and not benchmark.covariate_shift:
        raise SettingError("full_spectrum", full_spectrum, "False, or sets in benchmark.covariate_shift")


def _several(methods: Mapping[str, AnyMethod]) -> list[AnyMethod]:
    """Return the methods in a mapping, which may hold nothing else."""
    if not methods:
        raise SettingError("method", methods, "at least one method by name")
    for name, method in methods.items():
        if not isinstance(name, str):
            raise TypeError(f"method: the name {name!r} is not allowed; expected text")
        if isinstance(method, type) or not (isinstance(method, Detector) or is_postprocessor(method)):
            given = f"a {type(method).__name__}"
            if isinstance(method, type):
                given = f"the class {getattr(method, '__name__', '')}"
            raise TypeError(
                f"method: {name!r} is {given}; expected a Detector, or an object with OpenOOD's postprocessor methods"
            )
    return list(methods.values())


def _network_of(method: AnyMethod, network: nn.Module | None) -> nn.Module:
    """Return a method's own network, or the one that its methods are called with."""
    own = getattr(method, "network", None)
    found = own if isinstance(own, nn.Module) else network
    if found is None:
        raise TypeError(f"network: None is not allowed; {type(method).__name__} has none of its own")
    return found


def _evaluate_postprocessor(
    method: Postprocessor,
    network: nn.Module,
    benchmark: Benchmark,
    search: bool,
    full_spectrum: bool,
    known_accuracy: float | None,
    progress: bool | None,
) -> tuple[Result, float]:
    with evaluating(network):  # as OpenOOD's Evaluator does for its postprocessors
        searched = prepare(method, benchmark, network, search)
        scores: dict[str, list[np.ndarray]] = {}
        collector = ImageCollector()
        for name, loader in benchmark.test_loaders(full_spectrum):
            predictions, values, labels = infer(method, network, loader, name, progress is not False)
            scores.setdefault(name, []).append(values)
            collector.add(labels, predictions)
            collector.end(name, loader)
        if known_accuracy is None:
            known_accuracy = _accuracy(network, benchmark, full_spectrum, progress)
    values_by_set = TestValues({name: np.concatenate(parts) for name, parts in scores.items()})
    images = collector.images()
    result = result_of(benchmark, values_by_set, images, 0, searched, known_accuracy, full_spectrum)
    return result, known_accuracy


def _accuracy(network: nn.Module, benchmark: Benchmark, full_spectrum: bool, progress: bool | None) -> float:
    loaders = [loader for name, loader in benchmark.test_loaders(full_spectrum) if name == "id"]
    return accuracy(network, *loaders, classes=benchmark.classes, progress=progress)


def _evaluate_detectors(
    detectors: Mapping[str, AnyDetector],
    benchmark: Benchmark,
    search: bool | None,
    sweeps: Mapping[str, Mapping[str, Sequence[Any]]],
    full_spectrum: bool,
    known_accuracy: float | None,
    progress: bool | None,
    accuracies: dict[int, float],
) -> dict[str, Result]:
    groups: dict[Any, dict[str, AnyDetector]] = {}
    for name, detector in detectors.items():
        key = (id(detector.network), detector.settings.inference)
        groups.setdefault(key, {})[name] = detector
    found: dict[str, Result] = {}
    # float32 first: its pass gives the accuracy, which the others' do not.
    in_order = sorted(groups.values(), key=lambda group: _precision(group) != "float32")
    for group in in_order:
        one = OnePass(group, benchmark, progress)
        searched = one.prepare(search, sweeps)
        network = next(iter(group.values())).network
        percent = known_accuracy if known_accuracy is not None else accuracies.get(id(network))
        values, images, classes, counted = one.test(full_spectrum, percent is None)
        if percent is None:  # ACC is the plain network's, which a lower precision does not give
            percent = (
                counted if counted is not None else _accuracy(network, benchmark, full_spectrum, progress)
            )
        accuracies[id(network)] = percent
        for name in group:
            found[name] = result_of(
                benchmark, values[name], images, classes, searched.get(name), percent, full_spectrum
            )
    return found


def _precision(group: Mapping[str, AnyDetector]) -> str:
    """Return the precision of the network for all detectors of a group."""
    return next(iter(group.values())).settings.inference.precision

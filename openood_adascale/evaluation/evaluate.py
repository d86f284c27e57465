"""OpenOOD's evaluation of one or many methods, without OpenOOD: every loader is run once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, overload

from torch import nn

from ..detectors.base import Detector
from ..errors import SettingError
from ..evidence.modes import evaluating
from ..evidence.sharing import StoreLike, using_store
from .accuracy import accuracy
from .benchmark import Benchmark
from .in_group import together
from .one_pass import AnyDetector, OnePass, Seen, TestScores
from .postprocessors import Postprocessor, check, inferred, is_postprocessor, prepare
from .result import Result, result_of

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
    store: StoreLike = None,
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
    store: StoreLike = None,
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
    store: StoreLike = None,
) -> Result | dict[str, Result]:
    """Search or fit on validation data, then judge every near and far set.

    >>> results = evaluate({"MSP": MSP(network), "AdaSCALE-A": AdaSCALE(network)}, benchmark)      # one pass for both
    >>> list(results["AdaSCALE-A"].table.index)
    ['wolves', 'nearood', 'textures', 'farood']
    >>> result = evaluate(AdaSCALE(network, k2=50), benchmark, search=False)

    An image goes through a network once for all detectors that run it in the same precision, and for its accuracy. Where all
    processes of a torch.distributed group call it, they share the passes over process 0's loaders, and all have its results.

    Args:
        method: a :class:`~openood_adascale.detectors.base.Detector`, or any object with OpenOOD's postprocessor methods
            (``setup``, ``inference`` and, to search, ``APS_mode``, ``args_dict``, ``set_hyperparam``); or several by name,
            whose results come back by name. A detector that is fitted already is not fitted anew.
        benchmark: the loaders.
        network: for a postprocessor without an attribute ``network``, what its methods are called with. A detector brings
            its own, which may be named here.
        search: search the hyperparameters on ``val`` and ``ood_val``, where the method has any to search. None does
            so where ``sweep`` is given, or unless a detector is fitted, or has searched, already.
        sweep: for one detector, what to search instead of its default.
        full_spectrum: count the benchmark's covariate-shifted sets as in-distribution (OpenOOD's ``--fsood``).
        known_accuracy: ACC in percent if it is known already; computed otherwise.
        progress: True or False shows or hides the bars; None shows them in a terminal.
        store: a folder (or :class:`~openood_adascale.evidence.store.Store`) that keeps the images' activations, so that
            a later evaluation does not run the network over them again. None takes ``OPENOOD_ADASCALE_STORE`` or this
            process's memory, False none.

    Raises:
        TypeError: another network than a method's own, none for a postprocessor, or a mapping of anything else than
            methods by name.
        ValueError: loaders that the method needs are missing or empty, or scores are not finite.
        SettingError: a sweep unknown, empty or out of range, or one that cannot be used; an empty mapping;
            ``full_spectrum`` without covariate-shifted sets.
        StoreError: the store cannot be used, or has no room.
    """
    detectors = method if isinstance(method, Mapping) else {"": method}
    with using_store(store):
        return together(
            lambda: _evaluate(
                method, benchmark, network, search, sweep, full_spectrum, known_accuracy, progress
            ),
            {name: one for name, one in detectors.items() if isinstance(one, Detector)},
        )


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
    """Raise before any pass where arguments do not go together: none of them is to be passed over in silence."""
    methods = _several(method) if isinstance(method, Mapping) else [method]
    for one in methods:
        own = _network_of(one, network)
        if network is not None and network is not own:
            raise TypeError(
                f"network: this {type(network).__name__} is not the one that {type(one).__name__} has; "
                "expected None, or the method's own"
            )
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
    """Those of a mapping, which is to hold nothing else."""
    if not methods:
        raise SettingError("method", methods, "at least one method by name")
    for name, method in methods.items():
        if not isinstance(name, str):
            raise TypeError(f"method: the name {name!r} is not allowed; expected text")
        if isinstance(method, type) or not (isinstance(method, Detector) or is_postprocessor(method)):
            what = f"a {type(method).__name__}"
            if isinstance(method, type):
                what = f"the class {getattr(method, '__name__', '')}"
            raise TypeError(
                f"method: {name!r} is {what}; expected a Detector, or an object with OpenOOD's postprocessor methods"
            )
    return list(methods.values())


def _network_of(method: AnyMethod, network: nn.Module | None) -> nn.Module:
    """A method's own network, or the one that its methods are called with."""
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
        tested, seen = TestScores(benchmark, full_spectrum), Seen()
        for name, loader in tested.loaders():
            predictions, scores, labels = inferred(method, network, loader, progress is not False)
            tested.add(name, scores)
            seen.add(labels, predictions)
            seen.end(name, loader)
        if known_accuracy is None:
            known_accuracy = accuracy(network, *tested.known_loaders, progress=progress)
    result = result_of(benchmark, tested, seen, searched, known_accuracy, full_spectrum)
    return result, known_accuracy


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
        key = (id(detector.network), detector.settings.execution)
        groups.setdefault(key, {})[name] = detector
    found: dict[str, Result] = {}
    # float32 first: its pass gives the accuracy, which the others' do not.
    in_order = sorted(groups.values(), key=lambda group: _precision(group) != "float32")
    for group in in_order:
        one = OnePass(group, benchmark, progress)
        tables = one.prepare(search, sweeps)
        tested, seen, in_float32 = one.test(full_spectrum, known_accuracy is None)
        network = next(iter(group.values())).network
        percent = known_accuracy if known_accuracy is not None else accuracies.get(id(network), in_float32)
        if percent is None:  # only a lower precision's is at hand, and ACC is the plain network's
            percent = accuracy(network, *tested[next(iter(group))].known_loaders, progress=progress)
        accuracies[id(network)] = percent
        for name in group:
            found[name] = result_of(benchmark, tested[name], seen, tables.get(name), percent, full_spectrum)
    return found


def _precision(group: Mapping[str, AnyDetector]) -> str:
    """In which all detectors of a group run their network."""
    return next(iter(group.values())).settings.execution.precision

"""OpenOOD's evaluation of one or many methods, without OpenOOD: every loader is run once for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import pandas as pd
from torch import nn

from ..detectors.base import Detector
from ..errors import SettingError
from ..evidence.modes import evaluating
from ..evidence.sharing import StoreLike, using_store
from ..metrics import COLUMNS, ood_metrics
from .accuracy import accuracy
from .benchmark import Benchmark
from .one_pass import AnyDetector, OnePass, Seen, TestScores
from .per_image import PerImage
from .postprocessors import Postprocessor, inferred, prepare
from .which_files import classes_of


@dataclass
class Result:
    """What :func:`evaluate` found of one method."""

    table: pd.DataFrame
    """Rows: the near sets, ``nearood`` (their mean), the far sets, ``farood``; columns
    :data:`~openood_adascale.metrics.COLUMNS`, in percent."""
    scores: dict[str, np.ndarray]
    """Of ``id`` (with the covariate-shifted sets under full-spectrum OOD) and of every OOD set by name."""
    search: pd.DataFrame | None = None
    """The candidates and their AUROC in percent, where there was a search."""
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    """The names of the OOD sets."""
    scheme: str = "ood"
    """``ood``, or ``fsood`` under full-spectrum OOD, as OpenOOD calls them."""
    images: dict[str, PerImage] = field(default_factory=dict)
    """By the same names as :attr:`scores` and in their order: files, labels, predicted classes, adaptive percentiles."""
    classes: tuple[str, ...] = ()
    """Names of the classes 0, 1, …, where they are known."""


@overload
def evaluate(
    method: AnyDetector | Postprocessor,
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
    method: Mapping[str, AnyDetector],
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
    method: AnyDetector | Postprocessor | Mapping[str, AnyDetector],
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

    An image goes through a network once for all detectors that run it in the same precision, and for its accuracy.

    Args:
        method: a :class:`~openood_adascale.detectors.base.Detector`; several by name, whose results come back by
            name; or any object with OpenOOD's postprocessor methods (``setup``, ``inference`` and, to search,
            ``APS_mode``, ``args_dict``, ``set_hyperparam``). A detector that is fitted already is not fitted anew.
        benchmark: the loaders.
        network: for a postprocessor, what its methods are called with. A detector brings its own, which may be named here.
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
        TypeError: another network than a detector's own, none for a postprocessor, or a mapping of anything else than
            detectors by name.
        ValueError: loaders that the method needs are missing or empty, or scores are not finite.
        SettingError: a sweep unknown, empty or out of range, or one that cannot be used; an empty mapping;
            ``full_spectrum`` without covariate-shifted sets.
        StoreError: the store cannot be used, or has no room.
    """
    with using_store(store):
        return _evaluate(method, benchmark, network, search, sweep, full_spectrum, known_accuracy, progress)


def _evaluate(
    method: AnyDetector | Postprocessor | Mapping[str, AnyDetector],
    benchmark: Benchmark,
    network: nn.Module | None,
    search: bool | None,
    sweep: Mapping[str, Sequence[Any]] | None,
    full_spectrum: bool,
    known_accuracy: float | None,
    progress: bool | None,
) -> Result | dict[str, Result]:
    _check(method, benchmark, network, search, sweep, full_spectrum)
    if isinstance(method, Mapping):
        return _evaluate_detectors(method, benchmark, search, {}, full_spectrum, known_accuracy, progress)
    if isinstance(method, Detector):
        sweeps = {} if sweep is None else {"": sweep}
        found = _evaluate_detectors(
            {"": method}, benchmark, search, sweeps, full_spectrum, known_accuracy, progress
        )
        return found[""]
    if network is None:
        raise TypeError(f"network: None is not allowed; {type(method).__name__} has none of its own")
    with evaluating(network):  # as OpenOOD's Evaluator does for its postprocessors
        searched = prepare(method, benchmark, network, search is not False)
        tested, seen = TestScores(benchmark, full_spectrum), Seen()
        for name, loader in tested.loaders():
            predictions, scores, labels = inferred(method, network, loader, progress is not False)
            tested.add(name, scores)
            seen.add(labels, predictions)
            seen.end(name, loader)
        if known_accuracy is None:
            known_accuracy = accuracy(network, *tested.known_loaders, progress=progress)
    return _result(benchmark, tested, seen, searched, known_accuracy, full_spectrum)


def _check(
    method: AnyDetector | Postprocessor | Mapping[str, AnyDetector],
    benchmark: Benchmark,
    network: nn.Module | None,
    search: bool | None,
    sweep: Mapping[str, Sequence[Any]] | None,
    full_spectrum: bool,
) -> None:
    """Raise before any pass where arguments do not go together: none of them is to be passed over in silence."""
    detectors: list[AnyDetector] = [method] if isinstance(method, Detector) else []
    if isinstance(method, Mapping):
        detectors = _several(method)
    for detector in detectors:
        if network is not None and network is not detector.network:
            raise TypeError(
                f"network: this {type(network).__name__} is not the one that {type(detector).__name__} has; "
                "expected None, or the detector's own"
            )
    if sweep is not None and (search is False or not isinstance(method, Detector)):
        other = f"{type(method).__name__}, which has a sweep of its own"
        if isinstance(method, Mapping):
            other = "several detectors, each of which has its default_sweep"
        raise SettingError("sweep", sweep, f"None with {'search=False' if search is False else other}")
    if full_spectrum and not benchmark.covariate_shift:
        raise SettingError("full_spectrum", full_spectrum, "False, or sets in benchmark.covariate_shift")


def _several(detectors: Mapping[str, AnyDetector]) -> list[AnyDetector]:
    """Those of a mapping, which is to hold nothing else."""
    if not detectors:
        raise SettingError("method", detectors, "at least one detector by name")
    for name, detector in detectors.items():
        if not isinstance(name, str):
            raise TypeError(f"method: the name {name!r} is not allowed; expected text")
        if not isinstance(detector, Detector):
            is_class = isinstance(detector, type)
            what = f"the class {detector.__name__}" if is_class else f"a {type(detector).__name__}"
            raise TypeError(
                f"method: {name!r} is {what}; expected a Detector (a postprocessor is evaluated alone, with its network)"
            )
    return list(detectors.values())


def _evaluate_detectors(
    detectors: Mapping[str, AnyDetector],
    benchmark: Benchmark,
    search: bool | None,
    sweeps: Mapping[str, Mapping[str, Sequence[Any]]],
    full_spectrum: bool,
    known_accuracy: float | None,
    progress: bool | None,
) -> dict[str, Result]:
    groups: dict[Any, dict[str, AnyDetector]] = {}
    for name, detector in detectors.items():
        key = (id(detector.network), detector.settings.execution)
        groups.setdefault(key, {})[name] = detector
    found: dict[str, Result] = {}
    accuracies: dict[int, float] = {}
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
            found[name] = _result(benchmark, tested[name], seen, tables.get(name), percent, full_spectrum)
    return {name: found[name] for name in detectors}


def _precision(group: Mapping[str, AnyDetector]) -> str:
    """In which all detectors of a group run their network."""
    return next(iter(group.values())).settings.execution.precision


def _result(
    benchmark: Benchmark,
    tested: TestScores,
    seen: Seen,
    search: pd.DataFrame | None,
    known_accuracy: float,
    full_spectrum: bool,
) -> Result:
    scores = tested.scores()
    rows: dict[str, dict[str, float]] = {}
    for split, sets in (("nearood", benchmark.near), ("farood", benchmark.far)):
        for name in sets:
            rows[name] = ood_metrics(scores["id"], scores[name])
        rows[split] = {
            column: float(np.mean([rows[name][column] for name in sets])) for column in COLUMNS[:-1]
        }
    table = pd.DataFrame.from_dict(rows, orient="index").assign(ACC=known_accuracy)[list(COLUMNS)]
    scheme = "fsood" if full_spectrum else "ood"
    return Result(
        table,
        scores,
        search,
        tuple(benchmark.near),
        tuple(benchmark.far),
        scheme,
        seen.images(tested.percentiles()),
        _class_names(benchmark, seen.classes),
    )


def _class_names(benchmark: Benchmark, count: int) -> tuple[str, ...]:
    """Of ``count`` classes of the network, 0 where that is not known."""
    if benchmark.classes:
        if count not in (0, len(benchmark.classes)):
            warnings.warn(
                f"benchmark.classes: {len(benchmark.classes)} names are left out; the network has {count} classes",
                UserWarning,
                stacklevel=2,
            )
            return ()
        return tuple(benchmark.classes)
    # Those of the test images' folders are the network's only if there are as many.
    names = classes_of(getattr(benchmark.test, "dataset", None))
    return names if len(names) == count else ()

"""OpenOOD's evaluation protocol for one or many methods, without OpenOOD."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

from torch import nn

from ..detectors.base import Detector
from ..errors import CacheError, ImageError, SettingError
from ..features.cache import CacheDir, feature_cache
from ..features.network import check_network, evaluating
from .accuracy import Accuracy, accuracy
from .benchmark import Benchmark
from .one_pass import AnyDetector, OnePass
from .per_image import images_of
from .postprocessors import Postprocessor, check, infer, is_postprocessor, prepare
from .result import Parts, Result, result_of

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
    Postprocessors that take features share these passes.

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
            a warning gives their number).
        progress: True or False shows or hides the progress bars (default: shown in a terminal).
        cache_dir: Directory of a feature cache, so that a later evaluation runs no network (default: the cache in use, else
            ``OPENOOD_ADASCALE_CACHE_DIR``); False for none.
        cache_tag: See :func:`~openood_adascale.feature_cache`.

    Raises:
        TypeError: Another network than a method's own, none for a postprocessor, or a mapping of anything else than
            methods by name.
        ValueError: Missing or empty loaders, scores that are not finite, or test images without a label; names the set.
        ~openood_adascale.features.network.UnsupportedNetworkError: A network that cannot be used.
        SettingError: Labels that are no classes of the network, an invalid sweep, an empty mapping, or ``full_spectrum``
            without covariate-shifted sets.
        CacheError: The cache cannot be read or written.
    """
    if sweep is not None and (search is False or not isinstance(method, Detector)):
        other = f"{type(method).__name__}, which has a sweep of its own"
        if isinstance(method, Mapping):
            other = "several detectors, each of which has its default_sweep"
        raise SettingError("sweep", sweep, f"None with {'search=False' if search is False else other}")
    methods = _several(method) if isinstance(method, Mapping) else {"": method}
    evaluator = Evaluator(
        benchmark, network, search, sweep, full_spectrum, known_accuracy, progress, cache_dir, cache_tag
    )
    found = evaluator.run(methods)
    return found if isinstance(method, Mapping) else found[""]


@dataclass
class Evaluator:
    """Evaluation of methods by name; the arguments are those of :func:`evaluate`."""

    benchmark: Benchmark
    network: nn.Module | None = None
    search: bool | None = None
    sweep: Mapping[str, Sequence[Any]] | None = None
    full_spectrum: bool = False
    known_accuracy: float | None = None
    progress: bool | None = None
    cache_dir: CacheDir = None
    cache_tag: str | None = None

    def __post_init__(self) -> None:
        self._accuracies: dict[int, float] = {}  # by the identity of the network

    def run(
        self, methods: Mapping[str, AnyMethod], left_out: dict[str, str] | None = None
    ) -> dict[str, Result]:
        """Return the results by method; postprocessors that fail are noted in ``left_out``, or raise without it."""
        if self.full_spectrum and not self.benchmark.covariate_shift:
            raise SettingError("full_spectrum", True, "False, or sets in benchmark.covariate_shift")
        detectors = {name: one for name, one in methods.items() if isinstance(one, Detector)}
        others = {name: one for name, one in methods.items() if not isinstance(one, Detector)}
        networks = {name: self._network_of(method) for name, method in methods.items()}
        # Before any pass.
        for network in networks.values():
            check_network(network)
        for name, method in list(others.items()):
            with evaluating(networks[name]), _leaving_out(name, others, left_out):
                check(method, self.benchmark, self.search is not False)
        with self._shared_features(methods):
            found = self._detectors(detectors)
            for name, method in list(others.items()):
                with _leaving_out(name, others, left_out):
                    found[name] = self._postprocessor(method, networks[name])
        return {name: found[name] for name in methods if name in found}

    @contextmanager
    def _shared_features(self, methods: Mapping[str, AnyMethod]) -> Iterator[None]:
        """Use a feature cache: the one asked for, or a temporary one if methods would share passes or repeat them."""
        taking = [method for method in methods.values() if getattr(method, "from_features", False)]
        repeated = len(methods) > 1 or any(getattr(method, "APS_mode", False) for method in taking)
        with ExitStack() as stack:
            cache = stack.enter_context(feature_cache(self.cache_dir, self.cache_tag))
            if cache is None and taking and repeated:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="openood_adascale_"))
                stack.enter_context(feature_cache(folder, self.cache_tag))
            yield

    def _network_of(self, method: AnyMethod) -> nn.Module:
        """Return a method's own network, or the one that its methods are called with."""
        own = getattr(method, "network", None)
        if not isinstance(own, nn.Module):
            if self.network is None:
                raise TypeError(f"network: None is not allowed; {type(method).__name__} has none of its own")
            return self.network
        if self.network is not None and self.network is not own:
            raise TypeError(
                f"network: this {type(self.network).__name__} is not the one that {type(method).__name__} has; "
                "expected None, or the method's own"
            )
        return own

    def _detectors(self, detectors: Mapping[str, AnyDetector]) -> dict[str, Result]:
        groups: dict[Any, dict[str, AnyDetector]] = {}
        for name, detector in detectors.items():
            groups.setdefault((id(detector.network), detector.settings.inference), {})[name] = detector
        found: dict[str, Result] = {}
        # float32 first: its pass gives the accuracy, which the others' do not.
        for (key, _), group in sorted(groups.items(), key=lambda item: item[0][1].precision != "float32"):
            one = OnePass(group, self.benchmark, self.progress)
            searched = one.prepare(self.search, self.sweep)
            wanted = self.known_accuracy is None and key not in self._accuracies
            counter = Accuracy(self.benchmark.classes, wanted)
            parts, classes = one.test(self.full_spectrum, counter)
            first = next(iter(group.values()))
            if wanted and first.settings.precision == "float32":
                self._accuracies[key] = counter.percent()
            # The plain network's, whatever the precision of the method.
            percent = self._accuracy(first.network)
            for name, found_parts in parts.items():
                search = searched.get(name)
                found[name] = result_of(
                    self.benchmark, found_parts, classes, search, percent, self.full_spectrum
                )
        return found

    def _postprocessor(self, method: Postprocessor, network: nn.Module) -> Result:
        with evaluating(network):  # as OpenOOD's Evaluator does for its postprocessors
            searched = prepare(method, self.benchmark, network, self.search is not False)
            parts: Parts = {}
            for name, loader in self.benchmark.test_loaders(self.full_spectrum):
                predictions, values, labels = infer(method, network, loader, name, self.progress is not False)
                parts.setdefault(name, []).append((values, images_of(loader, labels, predictions)))
            percent = self._accuracy(network, getattr(method, "from_features", False))
        return result_of(self.benchmark, parts, 0, searched, percent, self.full_spectrum)

    def _accuracy(self, network: nn.Module, cached: bool = False) -> float:
        """Return ACC in percent, which is computed once for each network."""
        if self.known_accuracy is not None:
            return self.known_accuracy
        if id(network) not in self._accuracies:
            loaders = [one for name, one in self.benchmark.test_loaders(self.full_spectrum) if name == "id"]
            self._accuracies[id(network)] = accuracy(
                network, *loaders, classes=self.benchmark.classes, progress=self.progress, cached=cached
            )
        return self._accuracies[id(network)]


@contextmanager
def _leaving_out(
    name: str, methods: dict[str, Postprocessor], left_out: dict[str, str] | None
) -> Iterator[None]:
    """Take a method that fails out of ``methods``, and note the reason."""
    try:
        yield
    except (ImageError, CacheError):
        raise
    except Exception as error:  # another library's method raises anything
        if left_out is None:
            raise
        told = " ".join(str(error).split())
        left_out[name] = told if isinstance(error, SettingError) else f"{type(error).__name__}: {told}"
        del methods[name]


def _several(methods: Mapping[str, AnyMethod]) -> Mapping[str, AnyMethod]:
    """Return a mapping of methods, which may hold nothing else."""
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
    return methods

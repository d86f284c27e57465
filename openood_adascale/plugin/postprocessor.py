"""This package's detectors as postprocessors of OpenOOD, in classes that pickles name.

:data:`POSTPROCESSORS` lists them by name; ``AdaSCALEPostprocessor`` and the like are attributes of this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from openood.postprocessors.base_postprocessor import BasePostprocessor
from openood.utils import comm
from torch import Tensor, nn

from ..detectors.base import Detector, FittedDetector, StreamingDetector
from ..detectors.registry import Method
from ..detectors.settings import Settings
from ..errors import NotFittedError, SettingError, shown
from ..features.collect import LabelledStatistics, collect_statistics, iterate_statistics
from ..features.fingerprint import (
    NotFingerprintableError,
    dataset_key,
    first_difference,
    weights_fingerprint,
)
from ..features.modes import unwrap
from ..features.statistics import FeatureRequest, FeatureStatistics
from ..metrics import auroc
from .config import (
    Configuration,
    default_section,
    environment_overrides,
    plain,
    postprocessor_methods,
    present_section,
)
from .import_hook import say

FORMAT = 4
"""Format of pickles."""
_IMAGES = {"train": "training", "val": "validation", "ood_val": "OOD validation"}
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


class DetectorPostprocessor(BasePostprocessor):
    """A detector as a postprocessor of OpenOOD's ``Evaluator``, ``eval_ood*.py`` and ``main.py``.

    A search runs the network once over each of the two validation loaders; every candidate is arithmetic on the feature
    statistics of that pass, which are released at its end and are not in pickles.

    Args:
        config: OpenOOD's ``Config``, or any mapping with the YAML file's ``postprocessor`` (default: the keyword arguments).
        sweep: With keyword arguments, the YAML file's ``postprocessor_sweep`` (default: no search).
        settings: With keyword arguments, the YAML file's ``postprocessor_args``.

    Raises:
        SettingError: An unknown setting or sweep, a value out of range, or an empty sweep.
    """

    method: ClassVar[Method]

    def __init__(
        self, config: Any = None, *, sweep: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        super().__init__(config)
        if config is None:
            section = {
                "APS_mode": sweep is not None,
                "postprocessor_args": settings,
                "postprocessor_sweep": sweep,
            }
        elif settings or sweep is not None:
            raise TypeError("give either OpenOOD's config or keyword arguments, not both")
        else:
            section = plain(config).get("postprocessor") or {}
        self.yaml_source: tuple[str, str, str] | None = None
        """Arguments of ``get_postprocessor``: config_root, name, ID dataset. Set by the plugin."""
        self._pickled: dict[str, Any] | None = None
        self._configure(Configuration.parse(self.method, section, environment_overrides()))
        self._reset()

    @classmethod
    def by_default(cls) -> DetectorPostprocessor:
        """Return the postprocessor without a YAML file."""
        return cls({"postprocessor": default_section(cls.method)})

    def _configure(self, configured: Configuration) -> None:
        self._configured = configured
        self.APS_mode = configured.aps_mode
        self.args_dict = configured.sweep

    def _reset(self) -> None:
        """Restore the state before ``setup``."""
        self._settings: Any = self._configured.settings
        self.hyperparam_search_done = False
        self.setup_flag = False  # eval_ood.py saves postprocessors with this attribute
        self.search_table: dict[tuple[tuple[str, Any], ...], float] = {}
        """AUROC in percent of each candidate that OpenOOD's search has tried."""
        self._detector: Detector[Any, Any] | None = None
        self._loaders: dict[str, Any] = {}
        self._searching = False
        self._collected: list[tuple[Any, LabelledStatistics]] = []
        self._scores: dict[str, np.ndarray] = {}
        self._plain: list[tuple[nn.Module, Any, np.ndarray, np.ndarray]] = []

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}={value!r}" for name, value in self.settings.as_dict().items())
        return f"{type(self).__name__}({chosen})" + (", set up" if self.setup_flag else "")

    @property
    def settings(self) -> Settings:
        """Present settings, after a search the best ones; assigned ones count at the next ``setup``."""
        found: Settings = self._settings
        return found

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._configure(Configuration(settings, self.args_dict, self.APS_mode))
        self._settings = settings
        if self._detector is not None:
            self._detector.settings = settings

    @property
    def state(self) -> Any:
        """Fitted state (None before ``setup``, or if there is nothing to fit)."""
        return None if self._detector is None else self._detector.state

    # Methods that OpenOOD calls.

    def setup(
        self, net: nn.Module, id_loader_dict: Mapping[str, Any], ood_loader_dict: Mapping[str, Any]
    ) -> None:
        """Fit on ``id_loader_dict['val']``, or ``['train']`` if the settings' ``fit_split`` says so.

        A pickle of an earlier run with the same settings, weights and validation images needs no pass.

        Raises:
            ValueError: The loader to fit on is missing.
        """
        if not isinstance(net, nn.Module):
            raise TypeError(
                f"net: {type(net).__name__} is not a torch.nn.Module; {self.method.detector.__name__} needs one classifier"
            )
        if self.APS_mode and not self.args_dict:
            expected = "at least one list <setting>_list with APS_mode True"
            raise SettingError("postprocessor_sweep", {}, expected)
        loaded, self._pickled = self._pickled, None
        if loaded is not None and self._restore(loaded, net, id_loader_dict, ood_loader_dict):
            return
        self._reset()
        self._loaders = self._loaders_of(id_loader_dict, ood_loader_dict)
        self._detector = self._new_detector(net)
        self._searching = self.APS_mode
        self._fit()
        self.setup_flag = True

    def set_hyperparam(self, hyperparam: list[Any]) -> None:
        """Use one candidate: a value for each list of :attr:`args_dict`, in its order."""
        names = self._swept()
        if len(hyperparam) != len(names):
            expected = f"{len(names)} values, for the lists of the sweep: {', '.join(names) or 'none'}"
            raise SettingError("hyperparam", hyperparam, expected)
        self._settings = self._settings.replace(**dict(zip(names, hyperparam, strict=True)))
        self._scores = {}
        if self._detector is None:
            raise self._not_fitted()
        self._searching = self.APS_mode
        self._detector.settings = self._settings
        self._fit()

    def get_hyperparam(self) -> list[Any]:
        """Return the present candidate in :attr:`args_dict`'s order; both of OpenOOD's searches end with this call."""
        self._searching, self._collected = False, []
        chosen = self.settings.as_dict()
        return [chosen[name] for name in self._swept()] or list(chosen.values())

    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        """Return predicted classes and scores of a batch."""
        return self._detector_of(net).predict(data)

    def inference(self, net: nn.Module, data_loader: Any, progress: bool = True) -> Arrays:
        """Return predictions, scores and labels of a loader's images."""
        detector, show = self._detector_of(net), _shown(progress)
        detector.require_fitted()
        side = next((s for s in ("val", "ood_val") if data_loader is self._loaders.get(s, self)), None)
        if self._searching and side is not None:
            statistics, labels = self._statistics(data_loader, show)
            predictions, scores = (column.numpy() for column in self._score(detector, statistics))
            self._note_candidate(side, scores)
            return predictions.astype(int), scores, labels
        batches = []
        settings = detector.settings
        for statistics, labels in iterate_statistics(
            detector.extractor, data_loader, settings.request(), settings.inference, show, "Score"
        ):
            predictions, scores = (column.cpu().numpy() for column in self._score(detector, statistics))
            batches.append((predictions.astype(int), scores, labels, statistics.prediction.cpu().numpy()))
        found = [np.concatenate(column) for column in zip(*batches, strict=True)]
        if settings.precision == "float32":
            self._plain = [one for one in self._plain if one[1] is not data_loader]
            self._plain.append((net, data_loader, found[3], found[2]))
        return found[0], found[1], found[2]

    def plain_predictions(self, net: nn.Module, loader: Any) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the network's own predictions and the labels of a loader, if :meth:`inference` has seen them."""
        found = (rest for network, known, *rest in self._plain if network is net and known is loader)
        predictions, labels = next(found, (None, None))
        return None if predictions is None or labels is None else (predictions, labels)

    # Fitting and search.

    def _swept(self) -> list[str]:
        return [key.removesuffix("_list") for key in self.args_dict]

    def _new_detector(self, net: nn.Module) -> Detector[Any, Any]:
        settings = {name: getattr(self._settings, name) for name in self._settings.names()}
        return self.method.detector(net, **settings)

    def _detector_of(self, net: nn.Module) -> Detector[Any, Any]:
        detector = self._detector
        if detector is not None and unwrap(detector.network) is unwrap(net):
            return detector
        if self.method.detector.requires_fit:
            raise self._not_fitted()
        self._detector = self._new_detector(net)
        return self._detector

    def _not_fitted(self) -> NotFittedError:
        return NotFittedError(
            f"{type(self).__name__} is not fitted for this network: call setup(net, id_loader_dict, ood_loader_dict)"
        )

    @staticmethod
    def _score(detector: Detector[Any, Any], statistics: FeatureStatistics) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return detector.score_statistics(statistics, detector.settings, detector.state)

    def _loaders_of(self, known: Mapping[str, Any], ood: Mapping[str, Any]) -> dict[str, Any]:
        """Return the loaders of the images that fitting and search read, by :data:`_IMAGES`.

        Raises:
            ValueError: The one to fit on is missing.
        """
        split, kind = self._settings.split, self.method.detector
        loaders: dict[str, Any] = (
            {"val": known.get("val"), "ood_val": ood.get("val")} if self.APS_mode else {}
        )
        if kind.requires_fit:
            if known.get(split) is None:
                other = " (or on the validation images: fit_split: val)" if split == "train" else ""
                raise ValueError(
                    f"id_loader_dict: it has no {split!r}, only {sorted(known)}; {kind.__name__} is fitted on these images"
                    f"{other}"
                )
            loaders[split] = known[split]
        return loaders

    def _fit(self) -> None:
        """Fit the detector with its present settings."""
        detector: Any = self._detector
        if not isinstance(detector, FittedDetector):
            return
        loader = self._loaders[detector.settings.split]
        if not isinstance(detector, StreamingDetector):
            statistics = self._statistics(loader).statistics
            detector.set_state(detector.fit_state(statistics, detector.settings))
        elif detector.summary is not None and detector.has_summary:
            detector.use_summary(detector.summary)
        elif self._searching and detector.settings.split == "val":
            detector.use_summary(detector.summarise([self._statistics(loader).statistics]))
        else:
            detector.fit(loader, _shown(True))

    def _statistics(self, loader: Any, progress: bool | None = None) -> LabelledStatistics:
        """Return statistics of validation images that cover all candidates; they are kept during a search."""
        detector: Any = self._detector
        request = detector.settings.request()
        for known, collected in self._collected:
            if known is loader and collected.statistics.request.covers(request):
                return collected
        if self._searching:
            request = FeatureRequest.union([self._configured.request(), request])
        inference = detector.settings.inference
        found = collect_statistics(
            detector.extractor, loader, request, inference, progress, "Validation images"
        )
        if self._searching:
            self._collected.append((loader, found))
        return found

    def _note_candidate(self, side: str, scores: np.ndarray) -> None:
        """Add the present candidate to the search table once both loaders are scored."""
        self._scores[side] = scores
        if len(self._scores) < 2 or not all(np.isfinite(both).all() for both in self._scores.values()):
            return
        chosen = self.settings.as_dict()
        row = {name: chosen[name] for name in self._swept()}
        if isinstance(pair := row.get("percentile"), list):
            del row["percentile"]
            row.update(p_min=pair[0], p_max=pair[1])
        self.search_table[tuple(row.items())] = auroc(self._scores["val"], self._scores["ood_val"])

    # Pickles: numbers and settings, never the network.

    def __getstate__(self) -> dict[str, Any]:
        if self._pickled is not None:  # as loaded
            return self._pickled
        detector = self._detector
        weights, volatile = {}, list[str]()
        if self.setup_flag and detector is not None:
            detector.require_fitted()
            volatile = sorted(detector.extractor.volatile_buffers)
            weights = weights_fingerprint(detector.network, volatile)
        return {
            "format": FORMAT,
            "name": self.method.name,
            "configured": self._configured.as_section(),
            "settings": self._settings.as_dict(),
            "state": _arrays(self.state),
            "weights": weights,
            "volatile": volatile,
            "images": {role: _images_fingerprint(loader) for role, loader in self._loaders.items()},
            "setup_flag": self.setup_flag,
            "hyperparam_search_done": self.hyperparam_search_done,
            "yaml_source": self.yaml_source,
            "search": _columns(self.search_table),
        }

    def __setstate__(self, stored: Any) -> None:
        found = stored.get("format") if isinstance(stored, dict) else None
        if type(found) is not int or found != FORMAT:
            raise RuntimeError(
                f"{_file(self.method.name)}: it has format {shown(found)}; this version reads format {FORMAT}. Delete it "
                "and run again"
            )
        try:
            source = stored["yaml_source"]
            self.yaml_source = None
            if source is not None:
                root, name, dataset = map(str, source)
                self.yaml_source = root, name, dataset
            self._configure(Configuration.parse(self.method, stored["configured"]))
            self._reset()
            self._settings = self._configured.settings.replace(**stored["settings"])
            self.search_table = _rows(stored["search"])
            self.setup_flag = bool(stored["setup_flag"])
            self.hyperparam_search_done = bool(stored["hyperparam_search_done"])
            _tensors(stored["state"])
            _ = (dict(stored["weights"]), list(stored["volatile"]), dict(stored["images"]))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise RuntimeError(
                f"{_file(self.method.name)}: damaged or edited ({type(error).__name__}: {error}). Delete it and run again"
            ) from error
        self.config = None
        self._pickled = stored

    def _restore(
        self, stored: dict[str, Any], net: nn.Module, known: Mapping[str, Any], ood: Mapping[str, Any]
    ) -> bool:
        """Use a pickle of an earlier run, if it was made for these settings, weights and images.

        Otherwise one line says which of them differs.
        """
        if not self.setup_flag:
            return False
        name = self.yaml_source[1] if self.yaml_source else self.method.name
        reason = self._present_settings(name)
        if not reason and self.APS_mode and not self.hyperparam_search_done:
            reason = "it was saved before its search was done"
        if not reason:
            difference = first_difference(
                stored["weights"], weights_fingerprint(net, list(stored["volatile"]))
            )
            reason = f"made for other weights: {difference}" if difference else ""
        if not reason:
            self._loaders = self._loaders_of(known, ood)
            for role, loader in self._loaders.items():
                saved, present = stored["images"].get(role), _images_fingerprint(loader)
                if present is None or saved != present:
                    how = "other" if saved and present else "possibly other"
                    reason = f"made with {how} {_IMAGES[role]} images"
                    break
        if reason:
            say(
                f"{_file(name)} is out of date ({reason}): fitting and searching again. OpenOOD does not rewrite that "
                "file; delete it, and saved scores of the same name in ../scores (OpenOOD shows those instead)",
                once=False,
            )
            return False
        detector = self._detector = self._new_detector(net)
        detector.extractor.volatile_buffers = frozenset(stored["volatile"])
        if self.method.detector.requires_fit:
            detector.set_state(_tensors(stored["state"]))
        return True

    def _present_settings(self, name: str) -> str:
        """Use the settings of today's YAML file if they differ from a pickle's, and return a message that says so."""
        if self.yaml_source is None:
            return ""
        found = present_section(self.yaml_source[0], name, self.method)
        if found is None:
            say(
                f"{_file(name)}: the directory of its YAML file, {self.yaml_source[0]}, is gone; using the settings that "
                "it was made with",
                once=False,
            )
            return ""
        section, file = found
        configured = Configuration.parse(self.method, section, environment_overrides())
        if configured == self._configured:
            return ""
        self._configure(configured)
        return f"made with other settings than those of {file}"


def _shown(progress: bool) -> bool | None:
    """Return our ``progress`` for OpenOOD's: a bar is shown in a terminal, by the main process."""
    return None if progress and comm.is_main_process() else False


def _file(name: str) -> str:
    return f"the pickled postprocessor {name!r} (results/<run>/s*/postprocessors/{name}.pkl)"


def _images_fingerprint(loader: Any) -> str | None:
    """Return a fingerprint of a loader's images: paths, sizes, times and preprocessing (None if there is none)."""
    try:
        return dataset_key(loader, None)
    except (NotFingerprintableError, OSError):
        return None


def _arrays(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _arrays(value) for key, value in state.items()}
    return state.cpu().numpy() if isinstance(state, Tensor) else state


def _tensors(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _tensors(value) for key, value in state.items()}
    return torch.from_numpy(state) if isinstance(state, np.ndarray) else state


def _columns(search: Mapping[tuple[tuple[str, Any], ...], float]) -> dict[str, Any]:
    """Return the search table as columns, which reports read."""
    rows = [{**dict(row), "auroc": value} for row, value in search.items()]
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    numeric = {name: all(isinstance(v, float | int) for v in values) for name, values in columns.items()}
    return {n: np.array(v, dtype=np.float32) if numeric[n] else v for n, v in columns.items()}


def _rows(stored: Mapping[str, Any]) -> dict[tuple[tuple[str, Any], ...], float]:
    columns = {name: np.asarray(values).tolist() for name, values in stored.items()}
    aurocs = columns.pop("auroc", [])
    rows = [tuple(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return dict(zip(rows, aurocs, strict=True))


def _class_of(method: Method) -> type[DetectorPostprocessor]:
    """Return ``AdaSCALEPostprocessor`` for ``adascale``, ``AdaSCALELogitPostprocessor`` for ``adascale_logit``."""
    file = method.detector.__module__.rpartition(".")[2]
    added = method.name.removeprefix(file).split("_")
    name = method.detector.__name__ + "".join(word.capitalize() for word in added) + "Postprocessor"
    content = {"__module__": __name__, "__doc__": f"``{method.name}``: {method.label}.", "method": method}
    return type(name, (DetectorPostprocessor,), content)


_METHODS = postprocessor_methods()
_CLASSES = {method.name: _class_of(method) for method in _METHODS.values()}
_BY_CLASS_NAME = {cls.__name__: cls for cls in _CLASSES.values()}
POSTPROCESSORS = {name: _CLASSES[method.name] for name, method in _METHODS.items()}
"""Postprocessors by their names in OpenOOD, presets included."""


def __getattr__(name: str) -> type[DetectorPostprocessor]:
    """Return ``AdaSCALEPostprocessor`` and the like, for imports and pickles."""
    if name not in _BY_CLASS_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _BY_CLASS_NAME[name]

"""This package's detectors as postprocessors of OpenOOD, in classes that pickles name.

:data:`POSTPROCESSORS` lists them by name; ``AdaSCALEPostprocessor`` and the like are attributes of this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from openood.postprocessors.base_postprocessor import BasePostprocessor
from openood.utils import comm
from torch import Tensor, nn

from ..detectors.base import Detector, FittedDetector, StreamingDetector
from ..detectors.registry import Method
from ..detectors.settings import Settings
from ..errors import NotFittedError, SettingError, shown
from ..evaluation.one_pass import adaptive_values
from ..features.collect import LabelledStatistics, collect_statistics, iterate_statistics
from ..features.fingerprint import (
    NotFingerprintableError,
    dataset_key,
    first_difference,
    weights_fingerprint,
)
from ..features.network import unwrap
from ..features.statistics import FeatureRequest
from .config import (
    Configuration,
    default_section,
    environment_overrides,
    plain,
    postprocessor_methods,
    present_section,
)
from .import_hook import say

FORMAT = 6
"""Format of pickles."""
_IMAGES = {"train": "training", "val": "validation", "ood_val": "OOD validation"}
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Pass(NamedTuple):
    """Values of the images of a loader, by name."""

    net: nn.Module
    loader: Any
    precision: str
    values: dict[str, Tensor]


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
        self.yaml_name: str | None = None
        """Name of the YAML file that the settings are of (None for keyword arguments); set by the plugin."""
        self.config_root: str | None = None
        """Directory of the ``Evaluator``'s configs, for pickles; set by the plugin."""
        self._pickled: dict[str, Any] | None = None
        self._configure(Configuration.parse(self.method, section, environment_overrides()))
        self._reset()

    @classmethod
    def by_default(cls, name: str) -> DetectorPostprocessor:
        """Return the postprocessor without a YAML file."""
        found = cls({"postprocessor": default_section(cls.method)})
        found.yaml_name = name
        return found

    def _configure(self, configured: Configuration) -> None:
        self._configured = configured
        self.APS_mode = configured.aps_mode
        self.args_dict = configured.sweep

    def _reset(self) -> None:
        """Restore the state before ``setup``."""
        self._settings: Any = self._configured.settings
        self.hyperparam_search_done = False
        self.setup_flag = False  # eval_ood.py saves postprocessors with this attribute
        self._detector: Detector[Any, Any] | None = None
        self._loaders: dict[str, Any] = {}
        self._searching = False
        self._collected: list[tuple[Any, LabelledStatistics]] = []
        self._passes: list[_Pass] = []

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}={value!r}" for name, value in self.settings.as_dict().items())
        return f"{type(self).__name__}({chosen})" + (", set up" if self.setup_flag else "")

    @property
    def settings(self) -> Settings:
        """Present settings, after a search the best ones."""
        found: Settings = self._settings
        return found

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
            SettingError: A search without a sweep.
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
        if self._detector is None:
            raise self._not_fitted()
        self._settings = self._settings.replace(**dict(zip(names, hyperparam, strict=True)))
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
        settings, batches = detector.settings, []
        if self._searching and any(data_loader is self._loaders.get(role) for role in ("val", "ood_val")):
            passed = iter([self._statistics(data_loader, show)])
        else:
            passed = iterate_statistics(
                detector.extractor, data_loader, settings.request(), settings.inference, show, "Score"
            )
        for statistics, labels in passed:
            with torch.no_grad():
                predictions, scores = detector.score_statistics(statistics, settings, detector.state)
                columns = {"prediction": predictions, "score": scores, "plain": statistics.prediction}
                columns |= adaptive_values(detector, statistics)
            batches.append({name: values.cpu() for name, values in columns.items()})
            batches[-1]["label"] = torch.from_numpy(labels)
        found = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        self._passes = [one for one in self._passes if one.loader is not data_loader]
        self._passes.append(_Pass(net, data_loader, settings.precision, found))
        return found["prediction"].numpy().astype(int), found["score"].numpy(), found["label"].numpy()

    def plain_predictions(self, net: nn.Module, loader: Any) -> tuple[Tensor, Tensor] | None:
        """Return the network's own predictions and the labels of a loader, if :meth:`inference` has seen them."""
        for one in self._passes:
            if one.net is net and one.loader is loader and one.precision == "float32":
                return one.values["plain"], one.values["label"]
        return None

    def details_of(self, loader: Any) -> dict[str, np.ndarray]:
        """Return AdaSCALE's (N,) percentiles and Q' of a loader that :meth:`inference` has seen (empty otherwise)."""
        values = next((one.values for one in self._passes if one.loader is loader), {})
        return {name: values[name].double().numpy() for name in ("percentiles", "oodness") if name in values}

    # Fitting and search.

    def _swept(self) -> list[str]:
        return [key.removesuffix("_list") for key in self.args_dict]

    def _new_detector(self, net: nn.Module) -> Detector[Any, Any]:
        return self.method.detector(
            net, **{name: getattr(self._settings, name) for name in self._settings.names()}
        )

    def _detector_of(self, net: nn.Module) -> Detector[Any, Any]:
        if self._detector is None or unwrap(self._detector.network) is not unwrap(net):
            if self.method.detector.requires_fit:
                raise self._not_fitted()
            self._detector = self._new_detector(net)
        return self._detector

    def _not_fitted(self) -> NotFittedError:
        return NotFittedError(
            f"{type(self).__name__} is not fitted for this network: call setup(net, id_loader_dict, ood_loader_dict)"
        )

    def _loaders_of(self, known: Mapping[str, Any], ood: Mapping[str, Any]) -> dict[str, Any]:
        """Return the loaders of the images that fitting and search read, by :data:`_IMAGES`.

        Raises:
            ValueError: The one to fit on is missing.
        """
        split, kind = self._settings.split, self.method.detector
        loaders = {"val": known.get("val"), "ood_val": ood.get("val")} if self.APS_mode else {}
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
            detector.set_state(detector.fit_state(self._statistics(loader).statistics, detector.settings))
        elif detector.has_summary and detector.summary is not None:
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

    # Pickles: numbers and settings, never the network.

    def __getstate__(self) -> dict[str, Any]:
        if self._pickled is not None:  # as loaded
            return self._pickled
        weights: dict[str, str] = {}
        if self.setup_flag and self._detector is not None:
            self._detector.require_fitted()
            weights = weights_fingerprint(self._detector.network)
        return {
            "format": FORMAT,
            "configured": self._configured.as_section(),
            "settings": self._settings.as_dict(),
            "state": _arrays(self.state),
            "weights": weights,
            "images": {role: _images_fingerprint(loader) for role, loader in self._loaders.items()},
            "setup_flag": self.setup_flag,
            "hyperparam_search_done": self.hyperparam_search_done,
            "yaml_name": self.yaml_name,
        }

    def __setstate__(self, stored: Any) -> None:
        name = self.method.name
        found = stored.get("format") if isinstance(stored, dict) else None
        if type(found) is not int or found != FORMAT:
            told = f"it has format {shown(found)}; this version reads format {FORMAT}"
            raise RuntimeError(f"{_file(name)}: {told}. Delete it and run again")
        try:
            self.yaml_name, self.config_root = stored["yaml_name"], None
            self._configure(Configuration.parse(self.method, stored["configured"]))
            self._reset()
            self._settings = self._configured.settings.replace(**stored["settings"])
            self.setup_flag = bool(stored["setup_flag"])
            self.hyperparam_search_done = bool(stored["hyperparam_search_done"])
            _tensors(stored["state"])
            _ = (dict(stored["weights"]), dict(stored["images"]))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            told = f"damaged or edited ({type(error).__name__}: {error})"
            raise RuntimeError(f"{_file(name)}: {told}. Delete it and run again") from error
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
        if reason := self._difference(stored, net, known, ood):
            say(
                f"{_file(self.yaml_name or self.method.name)} is out of date ({reason}): fitting and searching again. "
                "OpenOOD does not rewrite that file; delete it, and saved scores of the same name in ../scores (OpenOOD "
                "shows those instead)",
                once=False,
            )
            return False
        detector = self._detector = self._new_detector(net)
        if self.method.detector.requires_fit:
            detector.set_state(_tensors(stored["state"]))
        return True

    def _difference(
        self, stored: dict[str, Any], net: nn.Module, known: Mapping[str, Any], ood: Mapping[str, Any]
    ) -> str:
        """Return the first difference from a pickle's settings, weights and images (empty if there is none)."""
        if self.yaml_name is not None and self.config_root is not None:
            section, file = present_section(self.config_root, self.yaml_name, self.method)
            configured = Configuration.parse(self.method, section, environment_overrides())
            if configured != self._configured:
                self._configure(configured)
                return f"made with other settings than those of {file}"
        if self.APS_mode and not self.hyperparam_search_done:
            return "it was saved before its search was done"
        present = weights_fingerprint(net)
        if difference := first_difference(stored["weights"], present):
            return f"made for other weights: {difference}"
        self._loaders = self._loaders_of(known, ood)
        for role, loader in self._loaders.items():
            saved, now = stored["images"].get(role), _images_fingerprint(loader)
            if now is None or saved != now:
                return f"made with {'other' if saved and now else 'possibly other'} {_IMAGES[role]} images"
        return ""


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


def _class_of(method: Method) -> type[DetectorPostprocessor]:
    """Return ``AdaSCALEPostprocessor`` for ``adascale``, ``AdaSCALELogitPostprocessor`` for ``adascale_logit``."""
    added = method.name.removeprefix(method.detector.__name__.lower()).split("_")
    name = method.detector.__name__ + "".join(word.capitalize() for word in added) + "Postprocessor"
    content = {"__module__": __name__, "__doc__": f"``{method.name}``: {method.label}.", "method": method}
    return type(name, (DetectorPostprocessor,), content)


_METHODS = postprocessor_methods()
_CLASSES = {method.name: _class_of(method) for method in _METHODS.values()}
POSTPROCESSORS = {name: _CLASSES[method.name] for name, method in _METHODS.items()}
"""Postprocessors by their names in OpenOOD, presets included."""
globals().update({cls.__name__: cls for cls in _CLASSES.values()})  # for imports and pickles

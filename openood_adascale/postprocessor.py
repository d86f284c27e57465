"""The OpenOOD binding: its postprocessor methods translated to a detector's. Translation only."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import yaml
from openood.postprocessors.base_postprocessor import BasePostprocessor
from openood.utils import comm
from torch import Tensor, nn

from .detector import AdaSCALE, Detector
from .evidence import Evidence, Plan
from .models import unwrap
from .plugin import configs_root
from .settings import SettingError, candidates, parse_sweep

PICKLE_FORMAT = 1


class DetectorPostprocessor(BasePostprocessor):
    """A detector as a postprocessor of OpenOOD's ``Evaluator``, ``eval_ood*.py`` and ``main.py``.

    During a search the network runs over each of the two validation loaders once; every candidate is arithmetic
    on what that pass kept. Nothing of it survives the search or goes into a pickle.

    Args:
        config: OpenOOD's ``Config``, or any mapping with the yml's ``postprocessor`` in it. None takes the
            keyword arguments instead.
        sweep: with keyword arguments, what ``postprocessor_sweep`` has in a yml; None searches nothing.
        settings: with keyword arguments, what ``postprocessor_args`` has.

    Raises:
        SettingError: a setting or sweep unknown, out of range or empty.
    """

    detector_class: ClassVar[type[Detector]]
    defaults: ClassVar[dict[str, Any]] = {}
    """Settings whose default differs from the detector's."""

    def __init__(
        self, config: Any = None, *, sweep: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        super().__init__(config)
        if config is None:
            config = {
                "postprocessor": {
                    "APS_mode": sweep is not None,
                    "postprocessor_args": settings,
                    "postprocessor_sweep": sweep,
                }
            }
        elif settings or sweep is not None:
            raise TypeError("give either OpenOOD's config or keyword arguments, not both")
        self._configure(_plain(config).get("postprocessor") or {})
        self.yml_source: tuple[str, str, str] | None = None
        """Where ``get_postprocessor`` looked: config_root, name, ID dataset. Set by the plugin."""
        self._restored_from: str | None = None
        self._made_for: dict[str, Any] = {}
        self._start()

    def _configure(self, section: dict[str, Any]) -> None:
        """Take over a yml's ``postprocessor`` section."""
        aps_mode = section.get("APS_mode", False)
        if not isinstance(aps_mode, bool):
            raise SettingError("APS_mode", aps_mode, "True or False")
        args, sweep = section.get("postprocessor_args"), section.get("postprocessor_sweep")
        settings_class = self.detector_class.settings_class
        self.settings = settings_class.from_mapping(args, "postprocessor_args", **self.defaults)
        self.APS_mode = aps_mode
        self.args_dict: dict[str, list[Any]] = {}
        if aps_mode:
            self.args_dict = {
                f"{name}_list": values for name, values in parse_sweep(settings_class, sweep).items()
            }
        self._configured = {
            "settings": self.settings.as_dict(),
            "sweep": self.args_dict,
            "APS_mode": aps_mode,
        }
        tried = candidates(self.settings, self.args_dict) if aps_mode else [self.settings]
        tried[0].warn_if_doubtful()
        self._plan = Plan.union(settings.plan() for settings in (self.settings, *tried))

    def _start(self) -> None:
        self.hyperparam_search_done = False
        self.setup_flag = False  # eval_ood.py saves whatever has this attribute
        self.state: Any = None
        self._release()
        self._detector: Detector | None = None
        self._network: nn.Module | None = None
        self._loaders: tuple[Any, ...] = ()

    def _release(self) -> None:
        self._searching = False
        self._kept: dict[int, tuple[Evidence, np.ndarray]] = {}

    # What OpenOOD calls.

    def setup(
        self, net: nn.Module, id_loader_dict: Mapping[str, Any], ood_loader_dict: Mapping[str, Any]
    ) -> None:
        """Learn from ``id_loader_dict['val']``; no pass at all where a loaded pickle matches network and settings."""
        if not isinstance(net, nn.Module):
            raise TypeError(
                f"net: {type(net).__name__} is not a torch.nn.Module; AdaSCALE needs one classifier"
            )
        loader = id_loader_dict["val"]
        made_for = {"network": fingerprint(net), "images": _image_count(loader)}
        reasons = self._out_of_date(made_for)
        if self.setup_flag and not reasons:
            self._detector, self._network = self._detector_for(net), net
            return
        if self._restored_from:
            _say(
                f"{self._restored_from} is out of date ({'; '.join(reasons)}): fitting and searching anew. OpenOOD "
                "does not rewrite that file; delete it, and the saved scores of the same name in ../scores if there "
                "are any (OpenOOD shows those instead of fresh ones)"
            )
        section = {
            "postprocessor_args": self._configured["settings"],
            "postprocessor_sweep": self._configured["sweep"],
            "APS_mode": self._configured["APS_mode"],
        }
        self._restored_from = None
        if self.setup_flag:
            self._configure(section)
        self._start()
        self._network, self._made_for = net, made_for
        self._loaders = (loader, ood_loader_dict.get("val") if self.APS_mode else None)
        self._searching = self.APS_mode
        self._detector = self._detector_for(net)
        self.state = self._learn()
        self.setup_flag = True

    def set_hyperparam(self, hyperparam: list[Any]) -> None:
        """Take over one candidate: a value for each list of :attr:`args_dict`, in its order."""
        names = [key.removesuffix("_list") for key in self.args_dict]
        if len(hyperparam) != len(names):
            raise SettingError("hyperparam", hyperparam, f"one value for each of {', '.join(names)}")
        self.settings = self.settings.replace(**dict(zip(names, hyperparam, strict=True)))
        self.state = self._learn()

    def get_hyperparam(self) -> list[Any]:
        """The present candidate, in :attr:`args_dict`'s order. Both of OpenOOD's searches end with this call."""
        self._release()
        chosen = self.settings.as_dict()
        return [chosen[key.removesuffix("_list")] for key in self.args_dict] or list(chosen.values())

    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted classes and scores of a batch."""
        return self._detector_for(net).predict(data)

    def inference(
        self, net: nn.Module, data_loader: Any, progress: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predictions, scores and labels of a loader's images."""
        show = None if progress and comm.is_main_process() else False
        if self._searching and net is self._network and any(data_loader is known for known in self._loaders):
            evidence, labels = self._evidence(data_loader, show)
            pred, conf = self._detector_for(net).judge(evidence, self.settings, self.state)
            return pred.numpy().astype(int), conf.numpy(), labels
        return self._detector_for(net).infer(data_loader, show)

    # What is kept while a search lasts.

    def _learn(self) -> Any:
        if self._detector is None or not self._loaders:
            raise RuntimeError(
                f"{type(self).__name__}: call setup(net, id_loader_dict, ood_loader_dict) first"
            )
        evidence, _ = self._evidence(self._loaders[0])
        return self._detector.learn(evidence, self.settings)

    def _evidence(self, loader: Any, progress: bool | None = None) -> tuple[Evidence, np.ndarray]:
        assert self._detector is not None
        plan = Plan.union([self._plan, self.settings.plan()])
        kept = self._kept.get(id(loader))
        if kept is None or not kept[0].plan.covers(plan):
            kept = self._detector.collect(loader, plan, progress, "Validation images")
            if self._searching:
                self._kept[id(loader)] = kept
        return kept

    def _detector_for(self, net: nn.Module) -> Detector:
        detector = self._detector
        if detector is None or detector.network is not net:
            detector = self._detector = self.detector_class(net, self.settings)
        detector.settings, detector.state = self.settings, self.state
        return detector

    # Pickles: numbers and settings, never the network.

    def __getstate__(self) -> dict[str, Any]:
        state = self.state.numpy() if isinstance(self.state, Tensor) else self.state
        return {
            "format": PICKLE_FORMAT,
            "configured": self._configured,
            "settings": self.settings.as_dict(),
            "state": state,
            "made_for": self._made_for,
            "setup_flag": self.setup_flag,
            "hyperparam_search_done": self.hyperparam_search_done,
            "yml_source": self.yml_source,
        }

    def __setstate__(self, stored: dict[str, Any]) -> None:
        path = _file_being_loaded()
        found = stored.get("format") if isinstance(stored, dict) else None
        if found != PICKLE_FORMAT:
            raise RuntimeError(
                f"{path or 'pickle'}: it has format {found!r}; this openood-adascale reads format {PICKLE_FORMAT}. "
                "Delete it and run again"
            )
        self.config = None
        configured = stored["configured"]
        self._configure(
            {
                "APS_mode": configured["APS_mode"],
                "postprocessor_args": configured["settings"],
                "postprocessor_sweep": configured["sweep"],
            }
        )
        self._start()
        self.settings = self.settings.replace(**stored["settings"])
        self.state = (
            torch.from_numpy(stored["state"]) if isinstance(stored["state"], np.ndarray) else stored["state"]
        )
        self._made_for = stored["made_for"]
        self.setup_flag = stored["setup_flag"]
        self.hyperparam_search_done = stored["hyperparam_search_done"]
        self.yml_source = stored["yml_source"]
        self._restored_from = path or "the loaded pickle"

    def _out_of_date(self, made_for: dict[str, Any]) -> list[str]:
        """Why what was learnt does not serve any more; takes over today's yml where a loaded pickle's has changed."""
        if not self.setup_flag:
            return []
        reasons = []
        if self._restored_from and self.yml_source:
            path = yml_path(*self.yml_source[:2])
            if path is not None:
                before, chosen = self._configured, self.settings
                section = yaml.safe_load(path.read_text(encoding="utf-8"))["postprocessor"]
                self._configure(section)
                if self._configured != before:
                    reasons.append(f"made with other settings than today's {path}")
                else:
                    self.settings = chosen
        if self._made_for.get("network") != made_for["network"]:
            reasons.append("made for another network")
        if self._made_for.get("images") != made_for["images"]:
            reasons.append("made with another number of validation images")
        if self.APS_mode and not self.hyperparam_search_done:
            reasons.append("saved before its search was done")
        return reasons


def fingerprint(network: nn.Module) -> str:
    """A digest of a network's weights and buffers, the same on every device."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in unwrap(network).state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def yml_path(config_root: str, name: str) -> Path | None:
    """The yml that OpenOOD would use today: the user's, else the packaged one; None where his folder is gone."""
    if not Path(config_root).is_dir():
        return None
    for root in (Path(config_root), configs_root()):
        path = root / "postprocessors" / f"{name}.yml"
        if path.is_file():
            return path
    return None


def _plain(value: Any) -> Any:
    """OpenOOD's ``Config`` (whose missing attributes read as None) as plain dicts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _image_count(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None


def _file_being_loaded() -> str | None:
    """The file that ``pickle.load(f)`` is reading: OpenOOD's scripts keep it in a local variable of the caller."""
    frame = sys._getframe(2)
    for value in [*frame.f_locals.values()]:
        if (
            isinstance(value, io.IOBase)
            and not value.closed
            and str(getattr(value, "name", "")).endswith(".pkl")
        ):
            return str(value.name)  # type: ignore[attr-defined]
    return None


def _say(message: str) -> None:
    if multiprocessing.parent_process() is None:
        print(f"openood-adascale: {message}", file=sys.stderr, flush=True)


class AdaSCALEPostprocessor(DetectorPostprocessor):
    """``adascale``: variant A."""

    detector_class = AdaSCALE


class AdaSCALELogitPostprocessor(DetectorPostprocessor):
    """``adascale_logit``: variant L."""

    detector_class = AdaSCALE
    defaults: ClassVar[dict[str, Any]] = {"variant": "L"}


POSTPROCESSORS: dict[str, type[DetectorPostprocessor]] = {
    "adascale": AdaSCALEPostprocessor,
    "adascale_logit": AdaSCALELogitPostprocessor,
}
"""Names in OpenOOD and what they stand for."""

"""The OpenOOD binding: its postprocessor methods translated to a detector's. Translation only."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import yaml
from openood.postprocessors.base_postprocessor import BasePostprocessor
from openood.utils import comm
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from .detector import AdaSCALE, Detector
from .evidence import Evidence, Plan
from .models import unwrap
from .plugin import configs_root, names
from .rivals import LTS, BFAct, OptFS
from .settings import EXECUTION, SettingError, candidates, parse_sweep

PICKLE_FORMAT = 1
_CHANGED = "its settings have been changed since"
_SECTION = ("name", "APS_mode", "postprocessor_args", "postprocessor_sweep")


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
        self._configure(_plain(config).get("postprocessor") or {}, from_environment())
        self.yml_source: tuple[str, str, str] | None = None
        """Where ``get_postprocessor`` looked: config_root, name, ID dataset. Set by the plugin."""
        self._restored_from: str | None = None
        self._made_for: dict[str, Any] = {}
        self._start()

    def _configure(self, section: Mapping[str, Any], overriding: Mapping[str, Any]) -> None:
        """Take over a yml's ``postprocessor`` section, but for the settings that ``overriding`` has."""
        for key in section:
            if key not in _SECTION:
                raise SettingError(f"postprocessor: {key}", section[key], "one of " + ", ".join(_SECTION))
        aps_mode = section.get("APS_mode", False)
        if not isinstance(aps_mode, bool):
            raise SettingError("APS_mode", aps_mode, "True or False")
        args, sweep = section.get("postprocessor_args"), section.get("postprocessor_sweep")
        settings_class = self.detector_class.settings_class
        self.settings = settings_class.from_mapping(
            {**(args or {}), **overriding}, "postprocessor_args", **self.defaults
        )
        self.APS_mode = aps_mode
        swept = parse_sweep(settings_class, sweep) if sweep or aps_mode else {}
        self.args_dict: dict[str, list[Any]] = {f"{name}_list": values for name, values in swept.items()}
        self._configured = {
            "settings": self.settings.as_dict(),
            "sweep": self.args_dict,
            "APS_mode": aps_mode,
        }
        tried = candidates(self.settings, self.args_dict) if aps_mode else [self.settings]
        any(settings.warn_if_doubtful() for settings in tried)  # once
        self._swept = Plan.union(settings.plan() for settings in tried)

    def _start(self) -> None:
        self.hyperparam_search_done = False
        self.setup_flag = False  # eval_ood.py saves whatever has this attribute
        self.state: Any = None
        self._summary: Any = None
        self._release()
        self._detector: Detector | None = None
        self._network: nn.Module | None = None
        self._loaders: tuple[Any, ...] = ()
        self._learn_loader: Any = None
        self._confidences: dict[bool, np.ndarray] = {}
        self.search_table: dict[tuple[tuple[str, Any], ...], float] = {}
        """AUROC in percent of each candidate that OpenOOD's search has tried."""

    def _release(self) -> None:
        self._searching = False
        self._kept: dict[int, tuple[Evidence, np.ndarray]] = {}

    # What OpenOOD calls.

    def setup(
        self, net: nn.Module, id_loader_dict: Mapping[str, Any], ood_loader_dict: Mapping[str, Any]
    ) -> None:
        """Learn from ``id_loader_dict['val']``, or ``['train']`` where the settings' ``learn_from`` says so.

        There is no pass at all where a loaded pickle matches network and settings, nor where the method learns
        nothing.

        Raises:
            ValueError: the loader to learn from is missing.
        """
        method = self.detector_class.__name__
        if not isinstance(net, nn.Module):
            raise TypeError(
                f"net: {type(net).__name__} is not a torch.nn.Module; {method} needs one classifier"
            )
        if self.APS_mode and not self.args_dict:
            raise SettingError(
                "postprocessor_sweep", {}, "at least one list <setting>_list where APS_mode is True"
            )
        made_for = {
            "network": fingerprint(net),
            "images": _images(id_loader_dict.get(self.settings.learns_from())),
        }
        reasons = self._out_of_date(made_for)
        fresh = self.setup_flag and not reasons
        if self._restored_from and reasons:
            _say(
                f"{self._restored_from} is out of date ({'; '.join(reasons)}): fitting and searching anew. OpenOOD "
                "does not rewrite that file; delete it, and the saved scores of the same name in ../scores if there "
                "are any (OpenOOD shows those instead of fresh ones)"
            )
        self._restored_from = None
        if not fresh:
            if self.setup_flag and reasons != [_CHANGED]:
                self._reconfigure(self._configured)
            self._start()
        source = self.settings.learns_from()
        self._learn_loader = id_loader_dict.get(source)
        if self.detector_class.needs_fit and self._learn_loader is None:
            raise ValueError(
                f"id_loader_dict: it has no {source!r}, only {sorted(id_loader_dict)}; {method} learns from these "
                f"images{' (or from the validation images: learn_from: val)' if source == 'train' else ''}"
            )
        self._network = net
        self._made_for = {**made_for, "images": _images(self._learn_loader)}
        self._loaders = (
            id_loader_dict.get("val"),
            ood_loader_dict.get("val") if self.APS_mode else None,
        )
        if not fresh:
            self._searching = self.APS_mode
            self.state = self._learn()
            self.setup_flag = True
        self._made_for["settings"] = self.settings.as_dict()

    def set_hyperparam(self, hyperparam: list[Any]) -> None:
        """Take over one candidate: a value for each list of :attr:`args_dict`, in its order."""
        names = [key.removesuffix("_list") for key in self.args_dict]
        if len(hyperparam) != len(names):
            raise SettingError(
                "hyperparam",
                hyperparam,
                f"{len(names)} values, for the lists of the sweep: {', '.join(names) or 'none'}",
            )
        self._searching = self.APS_mode and bool(self._loaders)
        self._confidences = {}
        self.settings = self.settings.replace(**dict(zip(names, hyperparam, strict=True)))
        self.state = self._learn()
        self._made_for["settings"] = self.settings.as_dict()

    def get_hyperparam(self) -> list[Any]:
        """The present candidate, in :attr:`args_dict`'s order. Both of OpenOOD's searches end with this call."""
        self._release()
        chosen = self.settings.as_dict()
        return [chosen[key.removesuffix("_list")] for key in self.args_dict] or list(chosen.values())

    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted classes and scores of a batch."""
        self._require_setup()
        return self._detector_for(net).predict(data)

    def inference(
        self, net: nn.Module, data_loader: Any, progress: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predictions, scores and labels of a loader's images."""
        self._require_setup()
        show = None if progress and comm.is_main_process() else False
        if self._searching and net is self._network and any(data_loader is known for known in self._loaders):
            evidence, labels = self._evidence(data_loader, show)
            pred, conf = self._detector_for(net).judge(evidence, self.settings, self.state)
            self._note(data_loader is self._loaders[0], conf.numpy())
            return pred.numpy().astype(int), conf.numpy(), labels
        return self._detector_for(net).infer(data_loader, show)

    # What is kept while a search lasts.

    def _note(self, known: bool, conf: np.ndarray) -> None:
        """Once both sets are scored, the candidate's AUROC: the table of the search, for reports."""
        self._confidences[known] = conf
        if len(self._confidences) == 2 and np.isfinite(np.concatenate([*self._confidences.values()])).all():
            chosen = self.settings.as_dict()
            row = {name: chosen[name] for name in (key.removesuffix("_list") for key in self.args_dict)}
            if isinstance(pair := row.get("percentile"), list):
                del row["percentile"]
                row.update(p_min=pair[0], p_max=pair[1])
            truth = np.concatenate([np.full(len(values), side) for side, values in self._confidences.items()])
            auroc = roc_auc_score(truth, np.concatenate([*self._confidences.values()]))
            self.search_table[tuple(row.items())] = 100 * float(auroc)

    def _learn(self) -> Any:
        if not self.detector_class.needs_fit:
            return None
        if self._network is None:
            raise self._not_set_up()
        detector = self._detector_for(self._network)
        if detector.streams:
            if self._summary is None:
                self._summary = self._summarise(detector)
            return detector.learn(self._summary, self.settings)
        evidence, _ = self._evidence(self._learn_loader)
        return detector.learn(evidence, self.settings)

    def _require_setup(self) -> None:
        if self.detector_class.needs_fit and self.state is None:
            raise self._not_set_up()

    def _not_set_up(self) -> RuntimeError:
        return RuntimeError(f"{type(self).__name__}: call setup(net, id_loader_dict, ood_loader_dict) first")

    def _summarise(self, detector: Detector) -> Any:
        if self._searching and self._learn_loader is self._loaders[0]:
            return detector.summarise([self._evidence(self._learn_loader)[0]])
        return detector.study(
            self._learn_loader, None if comm.is_main_process() else False, "Images to learn from"
        )

    def _evidence(self, loader: Any, progress: bool | None = None) -> tuple[Evidence, np.ndarray]:
        assert self._network is not None
        plan = self.settings.plan()
        kept = self._kept.get(id(loader))
        if kept is None or not kept[0].plan.covers(plan):
            detector = self._detector_for(self._network)
            kept = detector.collect(loader, Plan.union([self._swept, plan]), progress, "Validation images")
            if self._searching:
                self._kept[id(loader)] = kept
        return kept

    def _detector_for(self, net: nn.Module) -> Detector:
        detector = self._detector
        if detector is None or detector.network is not net:
            detector = self._detector = self.detector_class(net, self.settings)
        detector.settings, detector.state = self.settings, self.state
        return detector

    def _reconfigure(self, configured: Mapping[str, Any]) -> None:
        """Back to what a yml, an earlier ``_configure``, said."""
        self._configure(
            {
                "APS_mode": configured["APS_mode"],
                "postprocessor_args": configured["settings"],
                "postprocessor_sweep": configured["sweep"],
            },
            {},
        )

    # Pickles: numbers and settings, never the network.

    def __getstate__(self) -> dict[str, Any]:
        return {
            "format": PICKLE_FORMAT,
            "configured": self._configured,
            "settings": self.settings.as_dict(),
            "state": _arrays(self.state),
            "made_for": self._made_for,
            "setup_flag": self.setup_flag,
            "hyperparam_search_done": self.hyperparam_search_done,
            "yml_source": self.yml_source,
            "search": self._search_columns(),
        }

    def _search_columns(self) -> dict[str, Any]:
        """The search as columns, of which a report makes a heat map."""
        rows = [{**dict(row), "auroc": auroc} for row, auroc in self.search_table.items()]
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
        is_number = {
            name: all(isinstance(v, float | int) for v in values) for name, values in columns.items()
        }
        return {n: np.array(v, dtype=np.float32) if is_number[n] else v for n, v in columns.items()}

    def __setstate__(self, stored: dict[str, Any]) -> None:
        path = _file_being_loaded()
        found = stored.get("format") if isinstance(stored, dict) else None
        if found != PICKLE_FORMAT:
            raise RuntimeError(
                f"{path or 'pickle'}: it has format {found!r}; this openood-adascale reads format {PICKLE_FORMAT}. "
                "Delete it and run again"
            )
        self.config = None
        self._reconfigure(stored["configured"])
        self._start()
        self.settings = self.settings.replace(**stored["settings"])
        self.state = _tensors(stored["state"])
        self._made_for = stored["made_for"]
        self.setup_flag = stored["setup_flag"]
        self.hyperparam_search_done = stored["hyperparam_search_done"]
        self.yml_source = stored["yml_source"]
        columns = {name: np.asarray(values).tolist() for name, values in stored["search"].items()}
        aurocs = columns.pop("auroc", [])
        rows = [tuple(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        self.search_table = dict(zip(rows, aurocs, strict=True))
        self._restored_from = path or "the loaded pickle"

    def _out_of_date(self, made_for: dict[str, Any]) -> list[str]:
        """Why what was learnt does not serve any more; takes over today's yml where a loaded pickle's has changed."""
        if not self.setup_flag:
            return []
        reasons = []
        if self._restored_from and self.yml_source:
            path = yml_path(*self.yml_source[:2])
            if path is None:
                _say(
                    f"{self._restored_from}: the folder of its yml, {self.yml_source[0]}, is gone; using the settings "
                    "that it was made with"
                )
            else:
                before, chosen = self._configured, self.settings
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
                if not isinstance(content, dict) or not isinstance(content.get("postprocessor"), dict):
                    raise SettingError(str(path), content, "a yml with a section 'postprocessor'")
                self._configure(content["postprocessor"], from_environment())
                if self._configured != before:
                    reasons.append(f"made with other settings than today's {path}")
                else:
                    self.settings = chosen
        if self._made_for.get("network") != made_for["network"]:
            reasons.append("made for another network")
        if self._made_for.get("images") != made_for["images"]:
            reasons.append(f"made with other {_IMAGES[self.settings.learns_from()]} images")
        if not reasons and self._made_for.get("settings") != self.settings.as_dict():
            reasons.append(_CHANGED)
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
    """The yml that OpenOOD would use today: the user's, else the packaged one; None where his folder is gone.

    Where the checkout has moved since, its folder is looked for beside the ``openood`` that is imported.
    """
    import openood

    moved = Path(openood.__file__).resolve().parents[1] / "configs" if openood.__file__ else Path(config_root)
    user = next((root for root in (Path(config_root), moved) if root.is_dir()), None)
    if user is None:
        return None
    for root in (user, configs_root()):
        path = root / "postprocessors" / f"{name}.yml"
        if path.is_file():
            return path
    return None


def _plain(value: Any) -> Any:
    """OpenOOD's ``Config`` (whose missing attributes read as None) as plain dicts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


_IMAGES = {"train": "training", "val": "validation"}


def _arrays(state: Any) -> Any:
    """What a method learnt, with NumPy arrays for its tensors."""
    if isinstance(state, Mapping):
        return {key: _arrays(value) for key, value in state.items()}
    return state.numpy() if isinstance(state, Tensor) else state


def _tensors(state: Any) -> Any:
    """The inverse of :func:`_arrays`."""
    if isinstance(state, Mapping):
        return {key: _tensors(value) for key, value in state.items()}
    return torch.from_numpy(state) if isinstance(state, np.ndarray) else state


def from_environment() -> dict[str, str]:
    """Settings that environment variables give, for users who want to edit no file; they override a yml's."""
    given = {name: os.environ.get(f"OPENOOD_ADASCALE_{name.upper()}", "").strip() for name in EXECUTION}
    return {name: value for name, value in given.items() if value}


def _images(loader: Any) -> str | None:
    """Tells apart the images of OpenOOD's loaders by their list and preprocessing, of others by their number."""
    dataset = getattr(loader, "dataset", None)
    try:
        described = [len(dataset), getattr(dataset, "imglist", None), getattr(dataset, "data_dir", None)]  # type: ignore[arg-type]
    except TypeError:
        return None
    preprocessor = getattr(dataset, "preprocessor", None)
    described.append(re.sub(r" at 0x\w+", "", repr(getattr(preprocessor, "transform", preprocessor))))
    return hashlib.blake2b(repr(described).encode(), digest_size=16).hexdigest()


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


class OptFSPostprocessor(DetectorPostprocessor):
    """``optfs``."""

    detector_class = OptFS


class LTSPostprocessor(DetectorPostprocessor):
    """``lts``."""

    detector_class = LTS


class BFActPostprocessor(DetectorPostprocessor):
    """``bfact``."""

    detector_class = BFAct


_METHODS: dict[str, type[DetectorPostprocessor]] = {
    "adascale": AdaSCALEPostprocessor,
    "adascale_logit": AdaSCALELogitPostprocessor,
    "optfs": OptFSPostprocessor,
    "lts": LTSPostprocessor,
    "bfact": BFActPostprocessor,
}


def _postprocessors() -> dict[str, type[DetectorPostprocessor]]:
    """Every packaged yml by its name; ``<method>_<more>`` is a preset of the method."""
    found = dict(_METHODS)
    for name in sorted(names() - found.keys()):
        methods = [method for method in _METHODS if name.startswith(f"{method}_")]
        if methods:
            found[name] = _METHODS[max(methods, key=len)]
    return found


POSTPROCESSORS = _postprocessors()
"""Names in OpenOOD and what they stand for."""

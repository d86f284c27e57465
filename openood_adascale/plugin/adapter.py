"""OpenOOD's postprocessor methods, translated to a detector's. Translation only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from openood.postprocessors.base_postprocessor import BasePostprocessor
from openood.utils import comm
from torch import Tensor, nn

from ..detectors.base import Detector
from ..detectors.learning import LearningDetector
from ..detectors.registry import Method
from ..errors import SettingError
from ..evidence.fingerprint import network_digest
from . import pickles
from .freshness import CHANGED, MadeFor, WatchedNetwork, images_looked_at
from .process import say
from .search_session import Aurocs, Loaders, SearchSession, candidate_key
from .yml import Configuration, YmlSource, default_section, from_environment, plain, todays_section


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

    method: ClassVar[Method]
    detector_class: ClassVar[type[Detector[Any, Any]]]

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
        self._take_over(Configuration.parse(self.method, section, from_environment()))
        self.yml_source: tuple[str, str, str] | None = None
        """Where ``get_postprocessor`` looked: config_root, name, ID dataset. Set by the plugin."""
        self._from_pickle = False
        self._made_for = MadeFor()
        self._start()

    @classmethod
    def by_default(cls) -> DetectorPostprocessor:
        """One for which there is no yml."""
        return cls({"postprocessor": default_section(cls.method)})

    def _take_over(self, configured: Configuration) -> None:
        self._configured = configured
        self.settings = configured.settings
        self.APS_mode = configured.aps_mode
        self.args_dict = configured.sweep

    def _start(self) -> None:
        """As before ``setup``."""
        self.hyperparam_search_done = False
        self.setup_flag = False  # eval_ood.py saves whatever has this attribute
        self.state: Any = None
        self.search_table: Aurocs = {}
        """AUROC in percent of each candidate that OpenOOD's search has tried."""
        self._session: SearchSession | None = None
        self._detector: Detector[Any, Any] | None = None
        self._watched = WatchedNetwork()

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}={value!r}" for name, value in self.settings.as_dict().items())
        return f"{type(self).__name__}({chosen})" + (", set up" if self.setup_flag else "")

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
        self._require_classifier(net)
        digest = network_digest(net, self._made_for.volatile)
        images = self._images_looked_at(id_loader_dict, ood_loader_dict)
        reasons = self._out_of_date(MadeFor(digest, images, self.settings.as_dict()))
        fresh = self.setup_flag and not reasons
        if self._from_pickle and reasons:
            say(pickles.outdated(self._name(), reasons), once=False)
        self._from_pickle = False
        if not fresh:
            if self.setup_flag and reasons != [CHANGED]:
                self._take_over(self._configured)
            self._start()
        loaders = Loaders.of(
            self.detector_class, self.settings, self.APS_mode, id_loader_dict, ood_loader_dict
        )
        if not fresh and reasons:  # today's yml can ask for other images
            images = self._images_looked_at(id_loader_dict, ood_loader_dict)
        before = self._session
        self._session = SearchSession(
            net, self._configured.plan(), loaders, None if before is None else before.summary
        )
        if not fresh:
            if self.APS_mode:
                self._session.begin_candidate()
            self.state = self._learn()
            self.setup_flag = True
        volatile = self._made_for.volatile
        if self._detector is not None and self._detector.network is net and not fresh:
            volatile = tuple(sorted(self._detector.reader.volatile))
        digest = network_digest(net, volatile)
        self._watched.note(net)
        self._made_for = MadeFor(digest, images, self.settings.as_dict(), volatile)

    def set_hyperparam(self, hyperparam: list[Any]) -> None:
        """Take over one candidate: a value for each list of :attr:`args_dict`, in its order."""
        names = self._swept()
        if len(hyperparam) != len(names):
            raise SettingError(
                "hyperparam",
                hyperparam,
                f"{len(names)} values, for the lists of the sweep: {', '.join(names) or 'none'}",
            )
        if self.APS_mode and self._session is not None:
            self._session.begin_candidate()
        self.settings = self.settings.replace(**dict(zip(names, hyperparam, strict=True)))
        self.state = self._learn()
        self._made_for = dataclasses.replace(self._made_for, settings=self.settings.as_dict())

    def get_hyperparam(self) -> list[Any]:
        """The present candidate, in :attr:`args_dict`'s order. Both of OpenOOD's searches end with this call."""
        if self._session is not None:
            self._session.end()
        chosen = self.settings.as_dict()
        return [chosen[name] for name in self._swept()] or list(chosen.values())

    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted classes and scores of a batch."""
        self._require_setup(net)
        found = self._detector_for(net).predict(data)
        self._watched.note(net)
        return found

    def inference(
        self, net: nn.Module, data_loader: Any, progress: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predictions, scores and labels of a loader's images."""
        session = self._session
        served = session is not None and session.serves(net, data_loader)
        self._require_setup(net, thorough=not served)  # from what is kept, the network is not run
        show = _shown(progress)
        detector = self._detector_for(net)
        if session is not None and served:
            found = session.judge(detector, data_loader, show)
            if (auroc := session.auroc()) is not None:
                chosen = self.settings.as_dict()
                self.search_table[candidate_key({name: chosen[name] for name in self._swept()})] = auroc
            return found
        found = detector.predict_loader(data_loader, show)
        self._watched.note(net)
        return found

    # The detector behind it.

    def _swept(self) -> list[str]:
        return [key.removesuffix("_list") for key in self.args_dict]

    def _learn(self) -> Any:
        if not issubclass(self.detector_class, LearningDetector):
            return None
        if self._session is None:
            raise self._not_set_up()
        return self._session.learn(self._detector_for(self._session.network), _shown(True))

    def _detector_for(self, net: nn.Module) -> Detector[Any, Any]:
        detector = self._detector
        if detector is None or detector.network is not net:
            detector = self._detector = self.detector_class(net, self.settings)
        detector.settings, detector.state = self.settings, self.state
        return detector

    def _require_classifier(self, net: nn.Module) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(
                f"net: {type(net).__name__} is not a torch.nn.Module; {self.detector_class.__name__} needs one "
                "classifier"
            )
        if self.APS_mode and not self.args_dict:
            raise SettingError(
                "postprocessor_sweep", {}, "at least one list <setting>_list where APS_mode is True"
            )

    # Whether what was learnt still serves.

    def _images_looked_at(
        self, known: Mapping[str, Any], unknown: Mapping[str, Any]
    ) -> dict[str, str | None]:
        return images_looked_at(self.detector_class, self.settings, self.APS_mode, known, unknown)

    def _require_setup(self, net: nn.Module, thorough: bool = False) -> None:
        if not issubclass(self.detector_class, LearningDetector):
            return
        if self.state is None:
            raise self._not_set_up()
        if not self._watched.is_still(net, self._made_for, thorough):
            raise RuntimeError(
                f"net: its layers or weights are not those of the network that {type(self).__name__} was set up "
                "with; call setup(net, id_loader_dict, ood_loader_dict) again"
            )

    def _not_set_up(self) -> RuntimeError:
        return RuntimeError(f"{type(self).__name__}: call setup(net, id_loader_dict, ood_loader_dict) first")

    def _out_of_date(self, now: MadeFor) -> list[str]:
        """Why what was learnt does not serve any more; takes over today's yml where a loaded pickle's has changed."""
        if not self.setup_flag:
            return []
        reasons = self._take_over_todays_yml() if self._from_pickle else []
        others = self._made_for.outdated(now)
        reasons += [reason for reason in others if not (reasons and reason == CHANGED)]
        if self.APS_mode and not self.hyperparam_search_done:
            reasons.append("saved before its search was done")
        return reasons

    def _take_over_todays_yml(self) -> list[str]:
        if self.yml_source is None:
            return []
        today = todays_section(YmlSource(*self.yml_source), self.method)
        if today is None:
            say(
                f"{pickles.named(self._name())}: the folder of its yml, {self.yml_source[0]}, is gone; using the settings "
                "that it was made with",
                once=False,
            )
            return []
        configured = Configuration.parse(self.method, today.section, from_environment())
        if configured == self._configured:
            return []
        self._take_over(configured)
        return [f"made with other settings than today's {today.where}"]

    def _name(self) -> str:
        return self.yml_source[1] if self.yml_source else self.method.name

    # Pickles.

    def __getstate__(self) -> dict[str, Any]:
        return pickles.dump(
            pickles.Remembered(
                self._configured,
                self.settings,
                self.state,
                self._made_for,
                self.setup_flag,
                self.hyperparam_search_done,
                None if self.yml_source is None else YmlSource(*self.yml_source),
                self.search_table,
            )
        )

    def __setstate__(self, stored: object) -> None:
        kept = pickles.load(stored, self.method)
        self.config = None
        self._take_over(kept.configured)
        self._start()
        self.settings, self.state, self._made_for = kept.settings, kept.state, kept.made_for
        self.setup_flag, self.hyperparam_search_done = kept.setup_flag, kept.hyperparam_search_done
        self.yml_source, self.search_table = kept.yml_source, kept.search
        self._from_pickle = True


def _shown(progress: bool) -> bool | None:
    """OpenOOD's ``progress`` as ours: where it is on, bars are shown in a terminal, by one process."""
    return None if progress and comm.is_main_process() else False

"""Whether what a postprocessor has learnt, in this session or an earlier one, still serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..detectors.base import Detector
from ..detectors.learning import LearningDetector
from ..detectors.settings import Settings
from ..evidence.fingerprint import Glance, images_digest, network_digest
from ..evidence.modes import unwrap

CHANGED = "its settings have been changed since"

_IMAGES = {"train": "training", "val": "validation", "ood_val": "OOD validation"}


@dataclass(frozen=True)
class MadeFor:
    """What something was learnt from; plain words and dicts, which go into pickles."""

    network: str = ""
    """The network's digest."""
    images: dict[str, str | None] = field(default_factory=dict)
    """Their digests, by ``train``, ``val`` and ``ood_val``; None where they cannot be told."""
    settings: dict[str, Any] = field(default_factory=dict)
    volatile: tuple[str, ...] = ()
    """What the network's digest leaves out, since running the network changes it."""

    def outdated(self, now: MadeFor) -> list[str]:
        """Why it does not serve for ``now``."""
        reasons = [] if self.network == now.network else ["made for another network"]
        for role, digest in now.images.items():
            if digest is None:  # also of images that could not be told apart before
                reasons.append(f"it does not show whether the {_IMAGES[role]} images are the same")
            elif self.images.get(role) != digest:
                reasons.append(f"made with other {_IMAGES[role]} images")
        if not reasons and self.settings != now.settings:
            reasons.append(CHANGED)
        return reasons


def images_looked_at(
    method: type[Detector[Any, Any]],
    settings: Settings,
    search: bool,
    known: Mapping[str, Any],
    unknown: Mapping[str, Any],
) -> dict[str, str | None]:
    """The digests of all images that a method with these settings looks at, searching or not.

    Args:
        known, unknown: OpenOOD's ``id_loader_dict`` and ``ood_loader_dict``.
    """
    loaders = {"val": known.get("val"), "ood_val": unknown.get("val")} if search else {}
    if issubclass(method, LearningDetector):
        loaders[settings.source] = known.get(settings.source)
    return {role: images_digest(loader) for role, loader in loaders.items()}


class WatchedNetwork:
    """The network that something was learnt from; sees cheaply whether a network at hand is still that one."""

    def __init__(self) -> None:
        self._glance: Glance | None = None

    def note(self, network: nn.Module) -> None:
        """``network`` is that one; what a pass itself changes (a counter in a buffer, say) is no change."""
        self._glance = Glance(unwrap(network))

    def is_still(self, network: nn.Module, made_for: MadeFor, thorough: bool = False) -> bool:
        """Whether ``network`` is that one, for which something was made.

        Args:
            thorough: look at all of its weights and attributes, rather than at whether it has been touched.
        """
        if thorough or self._glance is None or not self._glance.still_holds(unwrap(network)):
            # Touched, it can be the same: a copy, or on another device. Untouched, it can be another: by way of .data.
            if network_digest(network, made_for.volatile) != made_for.network:
                return False
            self.note(network)
        return True

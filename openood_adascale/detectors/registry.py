"""Every method of the package, by name: the one table that commands, plugin, reports and the demo ask.

A new method is a file beside this one, with its settings and its detector, and a line below. Reading the table
imports nothing.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Detector


@dataclass(frozen=True)
class Method:
    """A line of the table."""

    name: str
    """In commands, file names and OpenOOD."""
    label: str
    """In tables and pictures, as the paper spells it."""
    where: str
    """``module:Class``, below this folder."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from the class's defaults."""
    in_openood: bool = True
    """Whether OpenOOD knows it by this name from this package; those it has itself are left to it."""

    @property
    def detector(self) -> type[Detector[Any, Any]]:
        """Its class."""
        module, _, name = self.where.partition(":")
        found: type[Detector[Any, Any]] = getattr(importlib.import_module(f".{module}", __package__), name)
        return found


METHODS = {
    method.name: method
    for method in (
        Method("msp", "MSP", "msp:MSP", in_openood=False),
        Method("ebo", "EBO", "energy:Energy", in_openood=False),
        Method("scale", "SCALE", "scale:SCALE", in_openood=False),
        Method("lts", "LTS", "lts:LTS"),
        Method("bfact", "BFAct", "bfact:BFAct"),
        Method("optfs", "OptFS", "optfs:OptFS"),
        Method("adascale", "AdaSCALE-A", "adascale:AdaSCALE"),
        Method("adascale_logit", "AdaSCALE-L", "adascale:AdaSCALE", {"variant": "L"}),
    )
}
"""In the order in which tables show them."""

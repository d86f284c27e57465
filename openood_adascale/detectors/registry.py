"""Every method of the package by name: the table that commands, plugin, reports and the demo use.

A new method has a line in :data:`METHODS`; ``ARCHITECTURE.md`` lists the other steps.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import DetectorFileError
from .adascale import AdaSCALE
from .base import Detector, qualified
from .bfact import BFAct
from .logits import MSP, Energy
from .optfs import OptFS
from .scale import LTS, SCALE
from .serialization import read_detector


@dataclass(frozen=True)
class Method:
    """A line of the table."""

    name: str  # in commands, file names and OpenOOD
    label: str  # as in the paper; reports take theirs from report/names.py
    detector: type[Detector[Any, Any]]
    defaults: dict[str, Any] = field(default_factory=dict)  # settings that differ from the class's defaults


METHODS = {
    method.name: method
    for method in (
        Method("msp", "MSP", MSP),
        Method("ebo", "EBO", Energy),
        Method("scale", "SCALE", SCALE),
        Method("lts", "LTS", LTS),
        Method("bfact", "BFAct", BFAct),
        Method("optfs", "OptFS", OptFS),
        Method("adascale", "AdaSCALE-A", AdaSCALE),
        Method("adascale_logit", "AdaSCALE-L", AdaSCALE, {"variant": "L"}),
    )
}
"""All methods in the order of tables."""


def load_detector(path: str | os.PathLike[str], network: nn.Module) -> Detector[Any, Any]:
    """Return the detector that a file holds, of any registered method; see :meth:`openood_adascale.AdaSCALE.load`.

    >>> OptFS(network).fit(train_loader).save("optfs.safetensors")
    >>> type(load_detector("optfs.safetensors", network)).__name__
    'OptFS'

    Args:
        path: The file.
        network: Network with the weights that the detector was saved for.

    Raises:
        DetectorFileError: As there, or the method is not registered.
        TypeError: ``network`` is not a module.
    """
    name = read_detector(path).method
    for method in METHODS.values():
        if qualified(method.detector) == name:
            return method.detector.load(path, network)
    raise DetectorFileError(
        f"{os.fspath(path)}: its method {name!r} is not registered; expected one of {', '.join(METHODS)}. Load another "
        "class's file with its own load(path, network)"
    )

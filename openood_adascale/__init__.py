"""AdaSCALE out-of-distribution detection (ICML 2026), on its own and as an OpenOOD plugin.

Importing the package changes nothing in the process and imports neither torch nor OpenOOD; the names below are loaded
on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .detectors.adascale import AdaSCALE as AdaSCALE
    from .detectors.base import Detector as Detector
    from .detectors.bfact import BFAct as BFAct
    from .detectors.logits import MSP as MSP
    from .detectors.logits import Energy as Energy
    from .detectors.optfs import OptFS as OptFS
    from .detectors.registry import load_detector as load_detector
    from .detectors.scale import LTS as LTS
    from .detectors.scale import SCALE as SCALE
    from .evaluation.benchmark import Benchmark as Benchmark
    from .evaluation.evaluate import evaluate as evaluate
    from .features.cache import feature_cache as feature_cache
    from .models.loading import load_network as load_network
    from .plugin.registration import register as register
    from .plugin.registration import register_dataset as register_dataset
    from .plugin.registration import unregister as unregister

_MODULES = {
    "AdaSCALE": "detectors.adascale",
    "BFAct": "detectors.bfact",
    "Benchmark": "evaluation.benchmark",
    "Detector": "detectors.base",
    "Energy": "detectors.logits",
    "LTS": "detectors.scale",
    "MSP": "detectors.logits",
    "OptFS": "detectors.optfs",
    "SCALE": "detectors.scale",
    "evaluate": "evaluation.evaluate",
    "feature_cache": "features.cache",
    "load_detector": "detectors.registry",
    "load_network": "models.loading",
    "register": "plugin.registration",
    "register_dataset": "plugin.registration",
    "unregister": "plugin.registration",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

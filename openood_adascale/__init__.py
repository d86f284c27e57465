"""AdaSCALE (ICML 2026) as an OpenOOD plugin and on its own.

Importing the package changes nothing in the process and imports neither torch nor OpenOOD; the names below are loaded
when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .detectors.adascale import AdaSCALE
    from .detectors.bfact import BFAct
    from .detectors.energy import Energy
    from .detectors.lts import LTS
    from .detectors.msp import MSP
    from .detectors.optfs import OptFS
    from .detectors.scale import SCALE
    from .evaluation.benchmark import Benchmark
    from .evaluation.evaluate import evaluate
    from .evidence.sharing import using_store
    from .plugin.registration import register, unregister

_LAZY = {
    "AdaSCALE": "detectors.adascale",
    "BFAct": "detectors.bfact",
    "Benchmark": "evaluation.benchmark",
    "Energy": "detectors.energy",
    "LTS": "detectors.lts",
    "MSP": "detectors.msp",
    "OptFS": "detectors.optfs",
    "SCALE": "detectors.scale",
    "evaluate": "evaluation.evaluate",
    "register": "plugin.registration",
    "unregister": "plugin.registration",
    "using_store": "evidence.sharing",
}

__all__ = [
    "LTS",
    "MSP",
    "SCALE",
    "AdaSCALE",
    "BFAct",
    "Benchmark",
    "Energy",
    "OptFS",
    "__version__",
    "evaluate",
    "register",
    "unregister",
    "using_store",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

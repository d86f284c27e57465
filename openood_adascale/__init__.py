"""AdaSCALE (ICML 2026) as an OpenOOD plugin and on its own.

Importing the package changes nothing in the process and imports neither torch nor OpenOOD; the names below are loaded
when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:  # for those who only read; what there is, the registry says
    from .detectors.adascale import AdaSCALE as AdaSCALE
    from .detectors.bfact import BFAct as BFAct
    from .detectors.energy import Energy as Energy
    from .detectors.lts import LTS as LTS
    from .detectors.msp import MSP as MSP
    from .detectors.optfs import OptFS as OptFS
    from .detectors.scale import SCALE as SCALE
    from .evaluation.benchmark import Benchmark as Benchmark
    from .evaluation.evaluate import evaluate as evaluate
    from .evidence.sharing import using_store as using_store
    from .plugin.registration import register as register
    from .plugin.registration import register_dataset as register_dataset
    from .plugin.registration import unregister as unregister

_NO_METHODS = {
    "Benchmark": "evaluation.benchmark",
    "evaluate": "evaluation.evaluate",
    "register": "plugin.registration",
    "register_dataset": "plugin.registration",
    "unregister": "plugin.registration",
    "using_store": "evidence.sharing",
}


def _lazy() -> dict[str, str]:
    """The module of each name, the detectors of the registry among them; it is not read before someone asks."""
    from .detectors.registry import METHODS

    methods = (method.where.partition(":") for method in METHODS.values())
    return {**{name: f"detectors.{module}" for module, _, name in methods}, **_NO_METHODS}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(["__version__", *_lazy()])
    module = _lazy().get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})

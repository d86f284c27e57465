"""AdaSCALE (ICML 2026) as an OpenOOD plugin and on its own.

Importing the package registers its postprocessors with OpenOOD (see :func:`register`); the names below are
loaded when first used, so that the import itself needs neither torch nor OpenOOD.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .plugin import register, unregister

if TYPE_CHECKING:
    from .detector import AdaSCALE

_LAZY = {"AdaSCALE": "detector"}

__all__ = ["AdaSCALE", "__version__", "register", "unregister"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()

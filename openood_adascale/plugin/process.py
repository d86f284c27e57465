"""What the plugin's modules share of this process, beneath all of them. Imports only the standard library."""

from __future__ import annotations

import os
import sys
import threading
from types import ModuleType
from typing import Any

VARIABLE = "OPENOOD_ADASCALE_DISABLE"
PARTS = ("register", "device", "stand-ins", "memory")
LOCK = threading.RLock()  # guards the plugin's state; never held while anything of OpenOOD's is imported

_ALL = {"1", "all", "true"}
_said: set[str] = set()


def switched_off(part: str = "all") -> bool:
    """Whether ``OPENOOD_ADASCALE_DISABLE`` switches ``part`` (one of :data:`PARTS`) or everything off."""
    return not _words().isdisjoint(_ALL | {part})


def unknown_words() -> list[str]:
    """What stands in ``OPENOOD_ADASCALE_DISABLE`` without a meaning."""
    return sorted(_words() - _ALL - {"", "0", *PARTS})


def _words() -> set[str]:
    return {word.strip().lower() for word in os.environ.get(VARIABLE, "").split(",")}


def say(line: str, once: bool = True) -> None:
    """Print ``line`` to stderr, once per process or every time; children of multiprocessing, and all but the first of the
    processes that torchrun starts, do not repeat it."""
    if (once and line in _said) or _is_child():
        return
    _said.add(line)
    try:
        if sys.stderr is not None:
            print(f"openood-adascale: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # a closed stderr is no reason to fail
        pass


def say_done(line: str, part: str) -> None:
    """:func:`say`, with how to switch ``part`` of the plugin off."""
    say(f"{line} ({VARIABLE}={part} switches this off)")


def _is_child() -> bool:
    if os.environ.get("RANK") not in (None, "", "0") and os.environ.get("WORLD_SIZE") not in (None, "", "1"):
        return True
    # A child of multiprocessing has this module loaded; a process without it does not pay for the import.
    module: Any = sys.modules.get("multiprocessing.process")
    if module is None:
        return False
    # _inheriting: a spawned child that is still importing its parent's script.
    return module.parent_process() is not None or hasattr(module.current_process(), "_inheriting")


def half_initialised(module: ModuleType | None) -> bool:
    """Whether ``module`` is in ``sys.modules`` already but still being executed."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def keep_memory() -> bool:
    """Have the C library keep freed memory, unless ``memory`` is switched off, and whether it does; see
    :mod:`~openood_adascale.memory`."""
    from ..memory import keep_memory as keep

    return not switched_off("memory") and keep()

"""Makes OpenOOD know ``openood_adascale`` as soon as a program imports torch and OpenOOD.

PyTorch (2.5 and later) calls :func:`autoload` at the end of every ``import torch`` (entry point group
``torch.backends``), also for programs that never heard of OpenOOD. So this module needs only the standard
library, lets no exception out, and does nothing but put a finder into ``sys.meta_path``; the package itself
is imported when one of OpenOOD's modules is executed.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

VARIABLE = "OPENOOD_ADASCALE_DISABLE"
PARTS = ("register", "device", "stand-ins")
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


def say(line: str) -> None:
    """Print ``line`` to stderr, once per process; children of multiprocessing do not repeat it."""
    if line in _said or _is_child():
        return
    _said.add(line)
    try:
        if sys.stderr is not None:
            print(f"openood-adascale: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # a closed stderr is no reason to fail
        pass


def _is_child() -> bool:
    # A child of multiprocessing has this module loaded; a process without it does not pay for the import.
    module: Any = sys.modules.get("multiprocessing.process")
    if module is None:
        return False
    # _inheriting: a spawned child that is still importing its parent's script.
    return module.parent_process() is not None or hasattr(module.current_process(), "_inheriting")


def half_initialised(module: Any) -> bool:
    """Whether ``module`` is in ``sys.modules`` already but still being executed."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _plugin() -> Any:
    try:
        from openood_adascale import plugin
    except Exception as error:
        say(f"not active, OpenOOD works as without it: {type(error).__name__}: {error}")
        return None
    return plugin


class Finder:
    """Finds ``openood.*`` with the finders after it, and has the plugin take part when such a module runs.

    Finding a module changes nothing: ``importlib.util.find_spec`` is also used to probe.
    """

    # The plugin has to look again at modules that were half-initialised when it came.
    pending = False
    # register() and unregister() have the last word over a later ``import torch``.
    unregistered = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if self.pending and not half_initialised(sys.modules.get("torch")):
            self.pending = False  # before the import in _plugin, which comes by here
            plugin = _plugin()
            if plugin is not None:
                plugin.catch_up()
        if not name.startswith("openood."):
            return None
        finders = list(sys.meta_path)
        later = finders[finders.index(self) + 1 :] if self in finders else finders
        for finder in later:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec and find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module") and not isinstance(spec.loader, _Loader):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    """The real loader in everything but ``exec_module``."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # a copy that is not initialised yet
            raise AttributeError(name)
        return getattr(self._loader, name)

    def exec_module(self, module: Any) -> None:
        loader = self._loader
        module.__loader__ = loader
        if module.__spec__ is not None:
            module.__spec__.loader = loader  # for inspect, linecache, pickle
        plugin = _plugin()
        if plugin is None:
            loader.exec_module(module)
        else:
            plugin.execute(module, loader.exec_module)


FINDER = Finder()


def install() -> None:
    """Put the finder into ``sys.meta_path``, once."""
    with LOCK:
        FINDER.unregistered = False
        if FINDER not in sys.meta_path:
            sys.meta_path.insert(0, FINDER)


def uninstall() -> None:
    """Take the finder away."""
    with LOCK:
        FINDER.unregistered, FINDER.pending = True, False
        if FINDER in sys.meta_path:
            sys.meta_path.remove(FINDER)


def autoload() -> None:
    """The entry point; raises nothing, since an exception would break ``import torch``."""
    try:
        if switched_off() or FINDER.unregistered:
            return
        install()
        # When OpenOOD is what imports torch, some of its modules are being executed already.
        FINDER.pending = any(name.startswith("openood.") for name in list(sys.modules))
    except Exception:
        pass

"""The hook into Python's import, and the basics that the plugin's modules share. Imports only the standard library."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "OPENOOD_ADASCALE_DISABLE"
DATASETS_VARIABLE = "OPENOOD_ADASCALE_DATASETS"
"""Environment variable: YAML files of custom datasets, separated as paths are."""
PARTS = ("register", "device", "stubs", "memory")
_SYNONYMS = {"stand-ins": "stubs"}
_ALL = {"1", "all", "true"}
LOCK = threading.RLock()  # guards the plugin's state; never held while a module of OpenOOD is imported

_said: set[str] = set()


def switched_off(part: str = "all") -> bool:
    """Return True if ``OPENOOD_ADASCALE_DISABLE`` switches ``part`` (one of :data:`PARTS`) or everything off."""
    return not _words().isdisjoint(_ALL | {part})


def unknown_words() -> list[str]:
    """Return the words in ``OPENOOD_ADASCALE_DISABLE`` without a meaning."""
    return sorted(_words() - _ALL - {"", "0", *PARTS})


def _words() -> set[str]:
    words = (word.strip().lower() for word in os.environ.get(VARIABLE, "").split(","))
    return {_SYNONYMS.get(word, word) for word in words}


def say(line: str, once: bool = True) -> None:
    """Print ``line`` to stderr, once per process or every time; child processes do not repeat it."""
    if (once and line in _said) or _is_child():
        return
    _said.add(line)
    try:
        if sys.stderr is not None:
            print(f"openood-adascale: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # a closed stderr
        pass


def say_done(line: str, part: str) -> None:
    """Print ``line`` once, with the setting that switches ``part`` of the plugin off."""
    say(f"{line} ({VARIABLE}={part} switches this off)")


def _is_child() -> bool:
    # A child of multiprocessing has this module loaded; a process without it does not pay for the import.
    module: Any = sys.modules.get("multiprocessing.process")
    if module is None:
        return False
    # _inheriting: a spawned child that is still importing its parent's script.
    return module.parent_process() is not None or hasattr(module.current_process(), "_inheriting")


def half_initialised(module: ModuleType | None) -> bool:
    """Return True if ``module`` is in ``sys.modules`` but still being executed."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def keep_memory() -> bool:
    """Call :func:`openood_adascale.memory.keep_memory` unless ``memory`` is switched off, and return its result."""
    from ..memory import keep_memory as keep

    return not switched_off("memory") and keep()


# Packaged YAML files.


def configs_root() -> Path:
    """Return the directory of the packaged configs, laid out as OpenOOD's: ``postprocessors/<name>.yml``."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def packaged_yaml(name: str) -> Path | None:
    """Return the packaged YAML file of a postprocessor (None if there is none)."""
    path = configs_root() / "postprocessors" / f"{name}.yml"
    return path if path.is_file() else None


# Changes to other people's objects.

_ABSENT = object()


class Changes:
    """Attributes and dict items that were replaced; :meth:`undo` restores those that nobody has changed since."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return bool(self._undo)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set ``owner[name]`` of a dict, or ``owner.name`` of a module or class."""
        before = _content(owner).get(name, _ABSENT)
        _put(owner, name, value)

        def undo() -> None:
            if _content(owner).get(name, _ABSENT) is value:
                _put(owner, name, before)

        self._undo.append(undo)

    def replace(self, module: Any, name: str, value: Any) -> None:
        """Set ``module.name``, and the copies that OpenOOD's modules or the user's script have imported by name."""
        before = vars(module)[name]
        setattr(module, name, value)
        _rebind(before, value)
        self._undo.append(lambda: _rebind(value, before))

    def undo(self) -> None:
        """Restore the previous state, the last change first."""
        while self._undo:
            self._undo.pop()()


def _rebind(old: Any, new: Any) -> None:
    for name, module in list(sys.modules.items()):
        if name == "__main__" or name.partition(".")[0] == "openood":
            for key, value in list(getattr(module, "__dict__", {}).items()):
                if value is old:
                    setattr(module, key, new)


def _content(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else vars(owner)


def _put(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner.update({name: value}) if value is not _ABSENT else owner.pop(name)
    elif value is not _ABSENT:
        setattr(owner, name, value)
    else:
        delattr(owner, name)


# The finder.

Run = Callable[[ModuleType], None]


class Finder:
    """Finds ``openood.*`` with the finders after it, and takes part when a module is executed.

    Finding a module changes nothing, as ``importlib.util.find_spec`` is also used to probe.
    """

    def __init__(self) -> None:
        self._first: Callable[[], None] | None = None
        self._execute: Callable[[ModuleType, Run], None] | None = None
        self._catch_up: Callable[[], None] | None = None
        self._untouched = True
        self.pending = False
        """True if half-initialised modules are to be looked at again once torch is complete."""

    def wait(self, first: Callable[[], None]) -> None:
        """Call ``first``, which calls :meth:`start`, when OpenOOD is imported; no effect once started or stopped."""
        with LOCK:
            if self._untouched:
                self._first = first
                # If OpenOOD is importing torch, some of its modules are being executed already.
                self.pending = any(name.startswith("openood.") for name in list(sys.modules))
                self._install()

    def start(self, execute: Callable[[ModuleType, Run], None], catch_up: Callable[[], None]) -> None:
        """Take part in OpenOOD's imports.

        Args:
            execute: Called in place of a module's own execution, with the module and the function that executes it.
            catch_up: Called at the next import of any module if :attr:`pending` is set and torch is complete.
        """
        with LOCK:
            self._untouched, self._first = False, None
            self._execute, self._catch_up = execute, catch_up
            self._install()

    def stop(self) -> None:
        """Leave OpenOOD's imports alone."""
        with LOCK:
            self._untouched, self._first, self.pending = False, None, False
            self._execute = self._catch_up = None
            if self in sys.meta_path:
                sys.meta_path.remove(self)

    def _install(self) -> None:
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def _begin(self) -> None:
        # In every thread that meets OpenOOD before the first one has called start().
        if (first := self._first) is not None:
            try:
                first()
            except Exception as error:
                say(f"not active, OpenOOD works as without it: {type(error).__name__}: {error}")

    def execute(self, module: ModuleType, run: Run) -> None:
        """Execute a module of OpenOOD by ``run(module)``."""
        self._begin()
        if self._execute is None:
            run(module)
        else:
            self._execute(module, run)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the module's spec (protocol of ``sys.meta_path``)."""
        if self.pending and not half_initialised(sys.modules.get("torch")):
            self.pending = False  # before the calls below, which may import
            self._begin()
            if self._catch_up is not None:
                self._catch_up()
        if not name.startswith("openood."):
            return None
        finders = list(sys.meta_path)
        later = finders[finders.index(self) + 1 :] if self in finders else finders
        for finder in later:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec and find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module") and not isinstance(spec.loader, _Loader):
                    spec.loader = _Loader(spec.loader, self.execute)
                return spec
        return None


class _Loader:
    """The real loader, except for ``exec_module``."""

    def __init__(self, loader: Any, execute: Callable[[ModuleType, Run], None]) -> None:
        self._loader, self._execute = loader, execute

    def __getattr__(self, name: str) -> Any:
        if name in ("_loader", "_execute"):  # a copy that is not initialised yet
            raise AttributeError(name)
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        loader = self._loader
        module.__loader__ = loader
        if module.__spec__ is not None:
            module.__spec__.loader = loader  # for inspect, linecache, pickle
        self._execute(module, loader.exec_module)


FINDER = Finder()
"""The finder of this process."""

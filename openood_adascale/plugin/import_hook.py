"""The hook into Python's import, and the basics that the plugin's modules share. Imports only the standard library."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

VARIABLE = "OPENOOD_ADASCALE_DISABLE"
DATASETS_VARIABLE = "OPENOOD_ADASCALE_DATASETS"
"""Environment variable: YAML files of custom datasets, separated as paths are."""
MARK = "__openood_adascale__"
"""Attribute of this package's wrappers."""
PARTS = ("register", "device", "stubs", "memory")
_ALL = {"1", "all", "true"}
LOCK = threading.RLock()  # guards the plugin's state; never held while a module of OpenOOD is imported

_said: set[str] = set()


def _words() -> set[str]:
    return {word.strip().lower() for word in os.environ.get(VARIABLE, "").split(",")}


def switched_off(part: str = "all") -> bool:
    """Return True if ``OPENOOD_ADASCALE_DISABLE`` switches ``part`` (one of :data:`PARTS`) or everything off."""
    return not _words().isdisjoint(_ALL | {part})


def say(line: str, once: bool = True) -> None:
    """Print ``line`` to stderr, once per process or every time; child processes do not repeat it."""
    if (once and line in _said) or _is_child() or sys.stderr is None:
        return
    _said.add(line)
    with suppress(OSError, ValueError):  # a closed stderr
        print(f"openood-adascale: {line}", file=sys.stderr, flush=True)


def say_unknown_words() -> None:
    """Print a line about words in ``OPENOOD_ADASCALE_DISABLE`` without a meaning."""
    if unknown := sorted(_words() - _ALL - {"", "0", *PARTS}):
        say(f"{VARIABLE}: ignoring {', '.join(map(repr, unknown))}; known are 1, {', '.join(PARTS)}")


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


def configs_root() -> Path:
    """Return the directory of the packaged configs, laid out as OpenOOD's: ``postprocessors/<name>.yml``."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def packaged_yaml(name: str) -> Path | None:
    """Return the packaged YAML file of a postprocessor (None if there is none)."""
    path = configs_root() / "postprocessors" / f"{name}.yml"
    return path if path.is_file() else None


_ABSENT = object()


class Changes:
    """Attributes and dict items that were replaced; :meth:`undo` restores those that nobody has changed since."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._replaced: list[tuple[Any, Any]] = []

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
        self._replaced.append((before, value))
        self._undo.append(lambda: _rebind(before, before))

    def replace_late_copies(self) -> None:
        """Repeat :meth:`replace` for modules that another thread was executing meanwhile."""
        for before, value in self._replaced:
            _rebind(before, value)

    def undo(self) -> None:
        """Restore the previous state, the last change first."""
        self._replaced.clear()
        while self._undo:
            self._undo.pop()()


def _rebind(original: Any, new: Any) -> None:
    """Replace all copies of a function, and of this package's wrappers of it."""
    for name, module in list(sys.modules.items()):
        if name == "__main__" or name.partition(".")[0] == "openood":
            for key, value in list(getattr(module, "__dict__", {}).items()):
                is_ours = isinstance(value, FunctionType) and hasattr(value, MARK)
                if value is original or (is_ours and value.__wrapped__ is original):
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


Run = Callable[[ModuleType], None]


class Finder:
    """Finds ``openood.*`` with the finders after it, and takes part when a module is executed.

    Finding a module changes nothing, as ``importlib.util.find_spec`` is also used to probe.
    """

    def __init__(self) -> None:
        self.pending: set[str] = set()
        """Modules of OpenOOD that were loaded, or being executed, when this package was registered."""
        self._register: Callable[[], None] | None = None
        self._execute: Callable[[ModuleType, Run], None] | None = None
        self._catch_up: Callable[[], None] | None = None
        self._decided = False

    def wait(self, register: Callable[[], None]) -> None:
        """Call ``register``, which calls :meth:`start`, when OpenOOD is imported; no effect once started or stopped."""
        with LOCK:
            if not self._decided:
                self._register = register
                self._install()

    def start(self, execute: Callable[[ModuleType, Run], None], catch_up: Callable[[], None]) -> None:
        """Take part in OpenOOD's imports.

        Args:
            execute: Called in place of a module's own execution, with the module and the function that executes it.
            catch_up: Called at the imports of any module as long as some are :attr:`pending` and torch is complete.
        """
        with LOCK:
            self._decided, self._register = True, None
            self._execute, self._catch_up = execute, catch_up
            self._install()

    def stop(self) -> None:
        """Leave OpenOOD's imports alone."""
        with LOCK:
            self._decided = True
            self._register = self._execute = self._catch_up = None
            self.pending.clear()
            # A new list, since other threads may be walking through the old one.
            sys.meta_path = [finder for finder in sys.meta_path if finder is not self]

    def _install(self) -> None:
        # Modules that other threads are importing are patched when they are complete.
        self.pending.update(name for name in list(sys.modules) if name.startswith("openood."))
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def _begin(self) -> None:
        # In every thread that meets OpenOOD before the first one has called start().
        if (register := self._register) is not None:
            try:
                register()
            except Exception as error:
                self._register = None
                say(f"not active, OpenOOD works as without it: {type(error).__name__}: {error}")

    def execute(self, module: ModuleType, run: Run) -> None:
        """Execute a module of OpenOOD by ``run(module)``."""
        self._begin()
        if (execute := self._execute) is None:
            run(module)
        else:
            execute(module, run)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the module's spec (protocol of ``sys.meta_path``)."""
        if self.pending and not half_initialised(sys.modules.get("torch")):
            if (catch_up := self._catch_up) is not None:
                catch_up()
            else:
                self.pending = set()  # start() fills it again
                self._begin()
        if not name.startswith("openood."):
            return None
        finders = list(sys.meta_path)
        for finder in finders[finders.index(self) + 1 :] if self in finders else finders:
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
        module.__loader__ = loader = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = loader  # for inspect, linecache, pickle
        self._execute(module, loader.exec_module)


FINDER = Finder()
"""The finder of this process."""

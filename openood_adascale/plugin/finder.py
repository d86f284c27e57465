"""The hook into Python's import. It is passive: what it calls is handed in. Imports only the standard library."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType
from typing import Any

from .process import LOCK, half_initialised, say

Run = Callable[[ModuleType], None]


class Finder:
    """Finds ``openood.*`` with the finders after it, and has others take part when such a module is executed.

    Finding a module changes nothing: ``importlib.util.find_spec`` is also used to probe.
    """

    def __init__(self) -> None:
        self._first: Callable[[], None] | None = None
        self._execute: Callable[[ModuleType, Run], None] | None = None
        self._catch_up: Callable[[], None] | None = None
        self._files: Mapping[str, str] = {}
        self._untouched = True
        self.pending = False
        """Whether modules that were half-initialised are to be looked at again, as soon as torch is complete."""

    def wait(self, first: Callable[[], None]) -> None:
        """Have ``first``, which calls :meth:`start`, called when OpenOOD is imported; not once started or stopped."""
        with LOCK:
            if self._untouched:
                self._first = first
                # When OpenOOD is what imports torch, some of its modules are being executed already.
                self.pending = any(name.startswith("openood.") for name in list(sys.modules))
                self._install()

    def start(
        self,
        execute: Callable[[ModuleType, Run], None],
        catch_up: Callable[[], None],
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Take part in OpenOOD's imports.

        Args:
            execute: called in place of a module's own execution, with the module and what executes it.
            catch_up: called with the next import of any module where :attr:`pending` is set and torch is complete.
            files: modules that are found in these files.
        """
        with LOCK:
            self._untouched, self._first = False, None
            self._execute, self._catch_up, self._files = execute, catch_up, files or {}
            self._install()

    def stop(self) -> None:
        """Take part no longer."""
        with LOCK:
            self._untouched, self._first, self.pending = False, None, False
            self._execute = self._catch_up = None
            self._files = {}
            if self in sys.meta_path:
                sys.meta_path.remove(self)

    def _install(self) -> None:
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def _begin(self) -> None:
        """OpenOOD is there: call what waits for it. In every thread that meets OpenOOD before it has called start()."""
        first = self._first
        if first is not None:
            try:
                first()
            except Exception as error:
                say(f"not active, OpenOOD works as without it: {type(error).__name__}: {error}")

    def execute(self, module: ModuleType, run: Run) -> None:
        """Execute a module of OpenOOD's by ``run(module)``, with those who take part."""
        self._begin()
        if self._execute is None:
            run(module)
        else:
            self._execute(module, run)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module's spec; the protocol of ``sys.meta_path``."""
        if self.pending and not half_initialised(sys.modules.get("torch")):
            self.pending = False  # what is called next may import, and so come by here
            self._begin()
            if self._catch_up is not None:
                self._catch_up()
        if name in self._files:
            return spec_from_file_location(name, self._files[name])
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
    """The real loader in everything but ``exec_module``."""

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
"""The process's own."""

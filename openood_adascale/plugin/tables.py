"""OpenOOD's two tables of postprocessors, with this package's in them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from .changes import Changes, rebind
from .names import configs_root, packaged_yml, postprocessor_methods
from .process import LOCK, say


class Tables:
    """What :meth:`enter` has changed in OpenOOD's modules.

    Args:
        classes: gives this package's postprocessors by their names in OpenOOD.
    """

    def __init__(self, classes: Callable[[], Mapping[str, Any]]) -> None:
        self._classes = classes
        self._changes = Changes()
        self._wrappers: list[tuple[Callable[..., Any], Callable[..., Any]]] = []  # with what they wrap
        self.active = False
        """While False, nothing is entered, and copies out of reach of :meth:`undo` work as OpenOOD's own."""

    def enter(self, module: ModuleType) -> None:
        """Enter the postprocessors, if ``module``, which was just executed, has one of the tables."""
        if module.__name__ == "openood.evaluation_api.postprocessor":
            self._enter_evaluators(module)
        elif module.__name__ == "openood.postprocessors.utils":
            self._enter_pipelines(module)

    def undo(self) -> None:
        """Take back what nobody has changed since. The caller holds the plugin's lock."""
        self.active = False
        while self._wrappers:
            rebind(*self._wrappers.pop())
        self._changes.undo()

    def _enter_evaluators(self, module: ModuleType) -> None:
        """A table, and a function that reads a yml."""
        import inspect

        table, original = _attribute(module, "postprocessors"), _attribute(module, "get_postprocessor")
        if self._is_ours(original):
            return
        signature = inspect.signature(original)
        for parameter in ("config_root", "postprocessor_name", "id_data_name"):
            if parameter not in signature.parameters:
                raise TypeError(f"get_postprocessor() has no parameter {parameter!r}")
        # Never under our lock: it imports OpenOOD's base class, which other threads may import, too.
        ours = self._classes()
        classes = {name: cls for name, cls in ours.items() if table.get(name, cls) is cls}
        for name in ours.keys() - classes.keys():
            _say_taken(name)

        @functools.wraps(original)
        def get_postprocessor(*args: Any, **kwargs: Any) -> Any:
            try:
                call = signature.bind(*args, **kwargs)
            except TypeError:
                return original(*args, **kwargs)
            name, root = call.arguments["postprocessor_name"], call.arguments["config_root"]
            if not self.active or name not in classes:
                return original(*args, **kwargs)
            if not os.path.exists(os.path.join(root, "postprocessors", f"{name}.yml")):
                # OpenOOD would download it and write it into the user's tree.
                if packaged_yml(name) is None and table.get(name) is classes[name]:
                    return _noted(classes[name].by_default(), classes[name], call.arguments)
                call.arguments["config_root"] = str(configs_root())
            found = original(*call.args, **call.kwargs)
            return _noted(found, classes[name], call.arguments | {"config_root": root})

        with LOCK:
            if self.active and vars(module)["get_postprocessor"] is original:  # else a thread was faster
                for name, cls in classes.items():
                    self._changes.set(table, name, cls)
                self._wrap(module, original, get_postprocessor)

    def _enter_pipelines(self, module: ModuleType) -> None:
        """A function with its table inside."""
        original = _attribute(module, "get_postprocessor")
        if self._is_ours(original):
            return

        @functools.wraps(original)
        def get_postprocessor(config: Any, *args: Any, **kwargs: Any) -> Any:
            name = getattr(getattr(config, "postprocessor", None), "name", None)
            if not self.active or name not in postprocessor_methods():
                return original(config, *args, **kwargs)
            try:
                postprocessor = original(config, *args, **kwargs)
            except KeyError as error:
                if error.args != (name,):
                    raise
            else:
                _say_taken(name)
                return postprocessor
            return self._classes()[name](config)

        with LOCK:
            if self.active and vars(module)["get_postprocessor"] is original:
                self._wrap(module, original, get_postprocessor)

    def _is_ours(self, function: Any) -> bool:
        return any(function is wrapper for wrapper, _ in list(self._wrappers))

    def _wrap(self, module: Any, original: Callable[..., Any], wrapper: Callable[..., Any]) -> None:
        module.get_postprocessor = wrapper
        rebind(original, wrapper)
        self._wrappers.append((wrapper, original))


def _noted(postprocessor: Any, cls: type, call: Mapping[str, Any]) -> Any:
    """A postprocessor of ours with where the user's yml would be: one that he adds later is found again."""
    if isinstance(postprocessor, cls):
        noted: Any = postprocessor
        noted.yml_source = (
            os.path.abspath(call["config_root"]),
            call["postprocessor_name"],
            call["id_data_name"],
        )
    return postprocessor


def _say_taken(name: str) -> None:
    say(f"OpenOOD has a postprocessor {name!r} of its own, which is used instead of this package's")


def _attribute(module: ModuleType, name: str) -> Any:
    if name not in vars(module):
        raise AttributeError(f"this OpenOOD has no {name!r} there")
    return vars(module)[name]

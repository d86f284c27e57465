"""Registers the package's postprocessors with OpenOOD, without changing a file of its.

:func:`register` puts a finder into ``sys.meta_path`` that has :func:`execute` take part when modules of
OpenOOD are executed, in whatever order they are imported; :func:`unregister` undoes all of it.

The environment variable ``OPENOOD_ADASCALE_DISABLE`` has the last word: ``1`` (``all``, ``true``) switches
everything off, explicit calls of :func:`register` included, and a comma-separated list of ``register``,
``device`` and ``stand-ins`` switches off these parts.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from openood_adascale_autoload import (
    FINDER,
    LOCK,
    PARTS,
    VARIABLE,
    half_initialised,
    install,
    say,
    switched_off,
    uninstall,
    unknown_words,
)

from . import host

_active = False
_changes = host.Changes()
_wrappers: list[tuple[Callable, Callable]] = []  # with what they wrap
_pending: set[str] = set()  # modules that were half-initialised when we came


def configs_root() -> Path:
    """The packaged configs, laid out as OpenOOD's: ``postprocessors/<name>.yml``."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> set[str]:
    """The names under which OpenOOD knows this package's postprocessors."""
    return {path.stem for path in (configs_root() / "postprocessors").glob("*.yml")}


def register() -> None:
    """Have OpenOOD know this package's postprocessors, and run on this machine.

    Called when the package is imported, and in every program that imports torch and then OpenOOD. Can be
    called before or after OpenOOD is imported, and again. ``OPENOOD_ADASCALE_DISABLE`` can forbid it.
    """
    global _active
    if switched_off():
        return
    if unknown := unknown_words():
        say(f"{VARIABLE}: ignoring {', '.join(map(repr, unknown))}; known are 1, {', '.join(PARTS)}")
    with LOCK:
        if not _active:
            _active = True
            _pending.update(name for name in list(sys.modules) if name.startswith("openood."))
        install()
    catch_up()


def unregister() -> None:
    """Undo :func:`register`: what it, and OpenOOD's imports since, put in place and nobody has changed since.

    A postprocessor that exists goes on working. With nothing registered, this does nothing.
    """
    global _active
    with LOCK:
        _active = False
        uninstall()
        _pending.clear()
        while _wrappers:
            _rebind(*_wrappers.pop())
        _changes.undo()
        host.undo()


def execute(module: ModuleType, run: Callable[[ModuleType], None]) -> None:
    """Execute ``module`` of OpenOOD's by ``run(module)``, OpenOOD's own part, and do ours around it."""
    if not _active:
        run(module)
        return
    with host.stand_ins(module):
        run(module)
    _patch(module)


def catch_up() -> None:
    """Patch those modules that were being executed when the plugin came, as far as they are complete now."""
    with LOCK:
        torch_is_ready = not half_initialised(sys.modules.get("torch"))
        loaded = {name: sys.modules[name] for name in _pending if name in sys.modules}
        ready = [m for m in loaded.values() if torch_is_ready and not half_initialised(m)]
        _pending.intersection_update(loaded)
        _pending.difference_update(m.__name__ for m in ready)
        FINDER.pending = bool(_pending)
    for module in ready:
        _patch(module)


def _patch(module: ModuleType) -> None:
    """Change what is to be changed in a module of OpenOOD's; nothing that goes wrong here reaches OpenOOD."""
    try:
        with LOCK:
            _pending.discard(module.__name__)
            if _active:
                host.redirect_cuda(module)
    except Exception as error:
        say(f"cannot redirect CUDA for {_story(module, error)}")
    try:
        hook = _HOOKS.get(module.__name__)
        if hook is not None and not switched_off("register"):
            hook(module)
    except Exception as error:
        say(f"cannot register with {_story(module, error)}")


def _story(module: ModuleType, error: Exception) -> str:
    return f"{module.__name__}, which works as without this package: {type(error).__name__}: {error}"


def _classes() -> dict[str, type]:
    # Late, since it imports OpenOOD's base class. Never under our lock: other threads may import it, too.
    from .postprocessor import POSTPROCESSORS

    return POSTPROCESSORS


def _register_for_evaluator(module: Any) -> None:
    """``openood.evaluation_api.postprocessor``: a table, and a function that reads a yml."""
    import inspect

    table, original = _attribute(module, "postprocessors"), _attribute(module, "get_postprocessor")
    if _is_ours(original):
        return
    signature = inspect.signature(original)
    for parameter in ("config_root", "postprocessor_name", "id_data_name"):
        if parameter not in signature.parameters:
            raise TypeError(f"get_postprocessor() has no parameter {parameter!r}")
    classes: dict[str, Any] = {n: cls for n, cls in _classes().items() if table.get(n, cls) is cls}
    for name in _classes().keys() - classes.keys():
        _say_taken(name)

    @functools.wraps(original)
    def get_postprocessor(*args: Any, **kwargs: Any) -> Any:
        try:
            call = signature.bind(*args, **kwargs)
        except TypeError:
            return original(*args, **kwargs)
        name = call.arguments["postprocessor_name"]
        if not _active or name not in classes:
            return original(*args, **kwargs)
        root = call.arguments["config_root"]
        # OpenOOD would download a yml that is not there and write it into the user's tree.
        if not os.path.exists(os.path.join(root, "postprocessors", f"{name}.yml")):
            call.arguments["config_root"] = str(configs_root())
        postprocessor = original(*call.args, **call.kwargs)
        if isinstance(postprocessor, classes[name]):
            # Where the user's yml would be, so that one he adds later is found when a pickle is loaded.
            postprocessor.yml_source = (os.path.abspath(root), name, call.arguments["id_data_name"])
        return postprocessor

    with LOCK:
        if _active and module.get_postprocessor is original:  # else another thread was faster
            for name, cls in classes.items():
                _changes.set(table, name, cls)
            _wrap(module, original, get_postprocessor)


def _register_for_pipelines(module: Any) -> None:
    """``openood.postprocessors.utils``: a function with its table inside."""
    original = _attribute(module, "get_postprocessor")
    if _is_ours(original):
        return

    @functools.wraps(original)
    def get_postprocessor(config: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(getattr(config, "postprocessor", None), "name", None)
        if not _active or name not in names():
            return original(config, *args, **kwargs)
        try:
            postprocessor = original(config, *args, **kwargs)
        except KeyError as error:
            if error.args != (name,):
                raise
        else:
            _say_taken(name)
            return postprocessor
        return _classes()[name](config)

    with LOCK:
        if _active and module.get_postprocessor is original:
            _wrap(module, original, get_postprocessor)


_HOOKS: dict[str, Callable[[Any], None]] = {
    "openood.evaluation_api.postprocessor": _register_for_evaluator,
    "openood.postprocessors.utils": _register_for_pipelines,
}


def _say_taken(name: str) -> None:
    say(f"OpenOOD has a postprocessor {name!r} of its own, which is used instead of this package's")


def _attribute(module: ModuleType, name: str) -> Any:
    if name not in vars(module):
        raise AttributeError(f"this OpenOOD has no {name!r} there")
    return vars(module)[name]


def _is_ours(function: Any) -> bool:
    return any(function is wrapper for wrapper, _ in list(_wrappers))


def _wrap(module: Any, original: Callable, wrapper: Callable) -> None:
    module.get_postprocessor = wrapper
    _rebind(original, wrapper)
    _wrappers.append((wrapper, original))


def _rebind(old: Any, new: Any) -> None:
    """Replace ``old`` by ``new`` where OpenOOD's modules, or the user's script, have imported it by name."""
    for name, module in list(sys.modules.items()):
        if name == "__main__" or name.partition(".")[0] == "openood":
            for key, value in list(getattr(module, "__dict__", {}).items()):
                if value is old:
                    setattr(module, key, new)

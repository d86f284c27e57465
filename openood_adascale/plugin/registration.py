"""Registration of the package's postprocessors with OpenOOD, without changing a file of it.

:func:`register` installs an import hook that calls this module when modules of OpenOOD are executed, in whatever order they
are imported; :func:`unregister` undoes everything.

The environment variable ``OPENOOD_ADASCALE_DISABLE`` has the last word: ``1`` (``all``, ``true``) switches everything
off, explicit calls of :func:`register` included, and a comma-separated list of ``register``, ``device``, ``stubs`` and
``memory`` switches off these parts. Imports only the standard library.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import SettingError
from . import evaluator
from .import_hook import (
    FINDER,
    LOCK,
    VARIABLE,
    Changes,
    configs_root,
    half_initialised,
    packaged_yaml,
    say,
    say_unknown_words,
    switched_off,
)
from .system import CUDA, stub_for_missing_package

ROOT = "OPENOOD_ROOT"
"""Environment variable: a checkout of OpenOOD, for commands that need it outside of one."""
_changes = Changes()
_active = False  # while False, copies of our wrappers out of reach of unregister() work as OpenOOD's own


def register() -> None:
    """Make OpenOOD know this package's postprocessors, and run on this system.

    Can be called before or after OpenOOD is imported, and repeatedly. With torch 2.5 or later, importing torch and then
    OpenOOD does the same. ``OPENOOD_ADASCALE_DISABLE`` can forbid it.
    """
    global _active
    if switched_off():
        return
    say_unknown_words()
    with LOCK:
        _active = True
        FINDER.start(_execute, _catch_up)
    _catch_up()


def unregister() -> None:
    """Undo :func:`register`: restore whatever it has replaced and nobody has changed since.

    Existing postprocessors go on working. Without a registration this does nothing.
    """
    global _active
    with LOCK:
        _active = False
        FINDER.stop()
        _changes.undo()
        if (custom := sys.modules.get(f"{__package__}.custom_dataset")) is not None:
            custom.DATASETS.clear()
        CUDA.undo()


def register_dataset(description: str | os.PathLike[str] | Mapping[str, Any]) -> str:
    """Make a custom dataset known to OpenOOD's ``Evaluator`` by name; calls :func:`register`.

    It replaces an earlier custom dataset of that name, and :func:`unregister` removes it.

    Args:
        description: A YAML file, or a dict with its content. Relative paths in a dict begin at the working directory, and
            its ``preprocessing`` may be a function of a PIL image.

    Returns:
        The name, for ``id_name``.

    Raises:
        SettingError: An invalid value, missing images, missing or wrong labels, a name that OpenOOD uses, or the plugin is
            switched off.
    """
    require_registration("custom datasets")
    from .custom_dataset import DATASETS  # imports torch

    dataset = DATASETS.add(description)
    register()
    return dataset.name


def require_registration(asked_by: str) -> None:
    """Check that ``OPENOOD_ADASCALE_DISABLE`` allows the registration, which ``asked_by`` needs.

    Raises:
        SettingError: It is switched off.
    """
    if switched_off("register"):
        raise SettingError(VARIABLE, os.environ[VARIABLE], f"no 1 or register together with {asked_by}")


# OpenOOD's checkout.


def evaluation_api(asked_by: str) -> ModuleType:
    """Import and return ``openood.evaluation_api``, with this package registered.

    A checkout that ``OPENOOD_ROOT`` names stays on Python's path.

    Args:
        asked_by: Feature that needs it, for errors.

    Raises:
        SettingError: OpenOOD is not found or cannot be imported, or the plugin is switched off.
    """
    require_registration(asked_by)
    root = os.environ.get(ROOT, "").strip()
    if root and "openood" not in sys.modules:
        place = Path(root).expanduser().resolve()
        if not (place / "openood" / "evaluation_api").is_dir():
            raise SettingError(ROOT, root, f"a checkout of OpenOOD, which {asked_by} needs")
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))
            importlib.invalidate_caches()
    spec = sys.modules["openood"].__spec__ if "openood" in sys.modules else find_spec("openood")
    if not any((Path(folder) / "evaluation_api").is_dir() for folder in _folders(spec)):
        expected = (
            f"OpenOOD, which {asked_by} needs: set {ROOT} to a checkout of it, or put one on Python's path"
        )
        raise SettingError(ROOT, root or None, expected)
    register()
    try:
        return importlib.import_module("openood.evaluation_api")
    except ImportError as error:
        expected = (
            f"OpenOOD with the packages that it imports: pip install 'openood-adascale[openood]' ({asked_by})"
        )
        raise SettingError("openood.evaluation_api", str(error), expected) from error


def openood_configs() -> Path:
    """Return the directory of the imported OpenOOD's configs."""
    return Path(_folders(sys.modules["openood"].__spec__)[0]).parent / "configs"


def _folders(spec: object) -> list[str]:
    return list(getattr(spec, "submodule_search_locations", None) or ())


# Modules of OpenOOD.


def _execute(module: ModuleType, run: Callable[[ModuleType], None]) -> None:
    with stub_for_missing_package(module, _changes):
        run(module)
    _patch(module)


def _catch_up() -> None:
    """Patch modules that were being executed when the plugin was registered and are complete now."""
    with LOCK:
        present = {name: module for name in FINDER.pending if (module := sys.modules.get(name)) is not None}
        ready = {}
        if not half_initialised(sys.modules.get("torch")):
            ready = {name: module for name, module in present.items() if not half_initialised(module)}
        FINDER.pending = present.keys() - ready.keys()
    for module in ready.values():
        _patch(module)
    with LOCK:
        _changes.replace_late_copies()


def _patch(module: ModuleType) -> None:
    """Change a module of OpenOOD; no error reaches OpenOOD."""
    name = module.__name__
    with LOCK:
        FINDER.pending.discard(name)
    _attempt("redirect CUDA for", functools.partial(_if_active, CUDA.redirect), module)
    if name in _PATCHES and not switched_off("register"):
        _attempt("register with", _PATCHES[name], module)


def _attempt(what: str, change: Callable[[ModuleType], None], module: ModuleType) -> None:
    try:
        change(module)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        say(f"cannot {what} {module.__name__}, which works as without this package: {problem}")


def _if_active(change: Callable[[ModuleType], None], module: ModuleType) -> None:
    with LOCK:
        if _active:
            change(module)


def _patch_evaluator_table(module: ModuleType) -> None:
    """Add the postprocessors to the ``Evaluator``'s table, and wrap its function that reads a YAML file."""
    table, original = vars(module)["postprocessors"], vars(module)["get_postprocessor"]
    signature = inspect.signature(original)
    for parameter in ("config_root", "postprocessor_name", "id_data_name"):
        if parameter not in signature.parameters:
            raise TypeError(f"get_postprocessor() has no parameter {parameter!r}")
    # Never under our lock: it imports OpenOOD's base class, which other threads may import, too.
    ours = _postprocessors()
    classes = {name: cls for name, cls in ours.items() if table.get(name, cls) is cls}
    for name in ours.keys() - classes.keys():
        _say_taken(name)

    def get_postprocessor(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        name, root = call.arguments["postprocessor_name"], call.arguments["config_root"]
        if not _active or name not in classes:
            return original(*args, **kwargs)
        if not os.path.exists(os.path.join(root, "postprocessors", f"{name}.yml")):
            # OpenOOD would download it, and write it into the user's tree.
            if packaged_yaml(name) is None and table.get(name) is classes[name]:
                return classes[name].by_default(name)
            call.arguments["config_root"] = str(configs_root())
        found = original(*call.args, **call.kwargs)
        if isinstance(found, classes[name]):
            found.yaml_name = name
        return found

    with LOCK:
        if _wrap(module, original, get_postprocessor):
            evaluator.patch_postprocessors(table, _changes)
            for name, cls in classes.items():
                _changes.set(table, name, cls)


def _patch_pipeline_table(module: ModuleType) -> None:
    """Wrap ``main.py``'s function, which has its table inside."""
    original = vars(module)["get_postprocessor"]

    def get_postprocessor(config: Any, *args: Any, **kwargs: Any) -> Any:
        name: Any = getattr(getattr(config, "postprocessor", None), "name", None)
        if not _active or name not in _postprocessors():
            return original(config, *args, **kwargs)
        try:
            postprocessor = original(config, *args, **kwargs)
        except KeyError as error:
            if error.args != (name,):
                raise
            return _postprocessors()[name](config)
        _say_taken(name)
        return postprocessor

    with LOCK:
        _wrap(module, original, get_postprocessor)


def _wrap(module: ModuleType, original: Any, wrapper: Any) -> bool:
    """Replace ``get_postprocessor`` unless that is done already; the caller holds the lock."""
    current = module.get_postprocessor
    if not _active or current is not original or hasattr(current, evaluator.MARK):
        return False
    _changes.replace(module, "get_postprocessor", evaluator.marked(functools.wraps(original)(wrapper)))
    return True


def _postprocessors() -> Mapping[str, Any]:
    from .postprocessor import POSTPROCESSORS  # imports torch and OpenOOD's base class

    return POSTPROCESSORS


def _say_taken(name: str) -> None:
    say(f"OpenOOD has its own postprocessor {name!r}, which is used instead of this package's")


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "openood.evaluation_api.postprocessor": _patch_evaluator_table,
    "openood.evaluation_api.evaluator": functools.partial(_if_active, lambda m: evaluator.patch(m, _changes)),
    "openood.postprocessors.utils": _patch_pipeline_table,
    "openood.postprocessors.base_postprocessor": functools.partial(
        _if_active, lambda m: evaluator.patch_inference(m, _changes)
    ),
}

"""Registration of the package's postprocessors with OpenOOD, without changing a file of it.

:func:`register` puts a finder into ``sys.meta_path`` that calls this module when modules of OpenOOD are executed, in
whatever order they are imported; :func:`unregister` undoes everything.

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
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from ..errors import SettingError
from . import evaluator
from .import_hook import (
    FINDER,
    LOCK,
    PARTS,
    VARIABLE,
    Changes,
    configs_root,
    half_initialised,
    packaged_yaml,
    say,
    switched_off,
    unknown_words,
)
from .system import CUDA, Stubs

ROOT = "OPENOOD_ROOT"
"""Environment variable: a checkout of OpenOOD, for commands that need it outside of one."""


def register() -> None:
    """Make OpenOOD know this package's postprocessors, and run on this system.

    Can be called before or after OpenOOD is imported, and repeatedly. With torch 2.5 or later, importing torch and then
    OpenOOD does the same. ``OPENOOD_ADASCALE_DISABLE`` can forbid it.
    """
    if switched_off():
        return
    if unknown := unknown_words():
        say(f"{VARIABLE}: ignoring {', '.join(map(repr, unknown))}; known are 1, {', '.join(PARTS)}")
    with LOCK:
        if not _state.active:
            _state.active = True
            _state.pending.update(name for name in list(sys.modules) if name.startswith("openood."))
            _changes.set(sys.modules, f"{__package__.rpartition('.')[0]}.postprocessor", _legacy_module())
        FINDER.start(_execute, _catch_up)
    _catch_up()


def unregister() -> None:
    """Undo :func:`register`: restore whatever it has replaced and nobody has changed since.

    Existing postprocessors go on working. Without a registration this does nothing.
    """
    with LOCK:
        FINDER.stop()
        _state.active = False
        _state.pending.clear()
        _changes.undo()
        if (custom := sys.modules.get(f"{__package__}.custom_dataset")) is not None:
            custom.DATASETS.clear()
        CUDA.undo()
        _stubs.undo()


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
    if switched_off("register"):
        raise SettingError(VARIABLE, os.environ[VARIABLE], "no 1 or register together with custom datasets")
    from .custom_dataset import DATASETS  # imports torch

    dataset = DATASETS.add(description)
    register()
    return dataset.name


# OpenOOD's checkout.


def evaluation_api(asked_by: str) -> ModuleType:
    """Import and return ``openood.evaluation_api``, with this package registered.

    A checkout that ``OPENOOD_ROOT`` names stays on Python's path.

    Args:
        asked_by: Feature that needs it, for errors.

    Raises:
        SettingError: OpenOOD is not found or cannot be imported, or the plugin is switched off.
    """
    if switched_off("register"):
        raise SettingError(VARIABLE, os.environ[VARIABLE], f"no 1 or register together with {asked_by}")
    root = os.environ.get(ROOT, "").strip()
    if root and "openood" not in sys.modules:
        place = Path(root).expanduser().resolve()
        if not (place / "openood" / "evaluation_api").is_dir():
            raise SettingError(ROOT, root, f"a checkout of OpenOOD, which {asked_by} needs")
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))
            importlib.invalidate_caches()
    spec = find_spec("openood") if "openood" not in sys.modules else sys.modules["openood"].__spec__
    if spec is None or not any((Path(folder) / "evaluation_api").is_dir() for folder in _folders(spec)):
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
    with _stubs.during(module):
        run(module)
    _patch(module)


def _catch_up() -> None:
    """Patch modules that were being executed when the plugin was registered and are complete now."""
    with LOCK:
        torch_is_ready = not half_initialised(sys.modules.get("torch"))
        loaded = {name: sys.modules[name] for name in _state.pending if name in sys.modules}
        ready = [m for m in loaded.values() if torch_is_ready and not half_initialised(m)]
        _state.pending.intersection_update(loaded)
        _state.pending.difference_update(m.__name__ for m in ready)
        FINDER.pending = bool(_state.pending)
    for module in ready:
        _patch(module)


def _patch(module: ModuleType) -> None:
    """Change a module of OpenOOD; no error reaches OpenOOD."""
    try:
        with LOCK:
            _state.pending.discard(module.__name__)
            if _state.active:
                CUDA.redirect(module)
    except Exception as error:
        say(f"cannot redirect CUDA for {_story(module, error)}")
    patch = _PATCHES.get(module.__name__)
    if patch is not None and not switched_off("register"):
        try:
            patch(module)
        except Exception as error:
            say(f"cannot register with {_story(module, error)}")


def _story(module: ModuleType, error: Exception) -> str:
    return f"{module.__name__}, which works as without this package: {type(error).__name__}: {error}"


def _patch_evaluator(module: ModuleType) -> None:
    with LOCK:
        if _state.active:
            evaluator.patch(module, _changes)


def _patch_inference(module: ModuleType) -> None:
    with LOCK:
        if _state.active:
            evaluator.patch_inference(module, _changes)


def _patch_evaluator_table(module: ModuleType) -> None:
    """Add the postprocessors to the ``Evaluator``'s table, and wrap its function that reads a YAML file."""
    table, original = _attribute(module, "postprocessors"), _attribute(module, "get_postprocessor")
    if _is_ours(original):
        return
    signature = inspect.signature(original)
    for parameter in ("config_root", "postprocessor_name", "id_data_name"):
        if parameter not in signature.parameters:
            raise TypeError(f"get_postprocessor() has no parameter {parameter!r}")
    # Never under our lock: it imports OpenOOD's base class, which other threads may import, too.
    ours = _postprocessors()
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
        if not _state.active or name not in classes:
            return original(*args, **kwargs)
        if os.path.exists(os.path.join(root, "postprocessors", f"{name}.yml")):
            found = original(*args, **kwargs)
        elif packaged_yaml(name) is None and table.get(name) is classes[name]:
            found = classes[name].by_default()
        else:  # OpenOOD would download it and write it into the user's tree
            call.arguments["config_root"] = str(configs_root())
            found = original(*call.args, **call.kwargs)
        if isinstance(found, classes[name]):
            # The place of the user's YAML file: one that is added later is found by a pickle.
            found.yaml_source = (os.path.abspath(root), name, call.arguments["id_data_name"])
        return found

    with LOCK:
        if _state.active and vars(module)["get_postprocessor"] is original:  # else a thread was faster
            for name, cls in classes.items():
                _changes.set(table, name, cls)
            _wrap(module, get_postprocessor)


def _patch_pipeline_table(module: ModuleType) -> None:
    """Wrap ``main.py``'s function, which has its table inside."""
    original = _attribute(module, "get_postprocessor")
    if _is_ours(original):
        return

    @functools.wraps(original)
    def get_postprocessor(config: Any, *args: Any, **kwargs: Any) -> Any:
        name: Any = getattr(getattr(config, "postprocessor", None), "name", None)
        if not _state.active or name not in _postprocessors():
            return original(config, *args, **kwargs)
        try:
            postprocessor = original(config, *args, **kwargs)
        except KeyError as error:
            if error.args != (name,):
                raise
        else:
            _say_taken(name)
            return postprocessor
        return _postprocessors()[name](config)

    with LOCK:
        if _state.active and vars(module)["get_postprocessor"] is original:
            _wrap(module, get_postprocessor)


def _wrap(module: ModuleType, wrapper: Any) -> None:
    wrapper.__openood_adascale__ = True
    _changes.replace(module, "get_postprocessor", wrapper)


def _is_ours(function: Any) -> bool:
    return _state.active and getattr(function, "__openood_adascale__", False)


def _postprocessors() -> Mapping[str, Any]:
    from .postprocessor import POSTPROCESSORS  # imports torch and OpenOOD's base class

    return POSTPROCESSORS


def _say_taken(name: str) -> None:
    say(f"OpenOOD has its own postprocessor {name!r}, which is used instead of this package's")


def _attribute(module: ModuleType, name: str) -> Any:
    if name not in vars(module):
        raise AttributeError(f"this OpenOOD has no {name!r} there")
    return vars(module)[name]


def _legacy_module() -> ModuleType:
    """Return the module that pickles of earlier versions name; loading one raises a clear error."""

    class LegacyPostprocessor:
        """Postprocessor of an earlier version."""

        def __setstate__(self, stored: object) -> NoReturn:
            raise RuntimeError(
                "pickle: made by another version of openood-adascale. Delete it (OpenOOD's scripts keep such files in "
                "results/<run>/s*/postprocessors/<name>.pkl) and run again"
            )

    def attribute(name: str) -> type[LegacyPostprocessor]:
        if not name.endswith("Postprocessor"):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return LegacyPostprocessor

    module: Any = ModuleType("openood_adascale.postprocessor")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.__getattr__ = attribute
    return module


class _State:
    active = False
    """While False, copies of our wrappers out of reach of :func:`unregister` work as OpenOOD's own."""

    def __init__(self) -> None:
        self.pending: set[str] = set()  # modules that were half-initialised at registration


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "openood.evaluation_api.postprocessor": _patch_evaluator_table,
    "openood.evaluation_api.evaluator": _patch_evaluator,
    "openood.postprocessors.utils": _patch_pipeline_table,
    "openood.postprocessors.base_postprocessor": _patch_inference,
}
_state, _changes, _stubs = _State(), Changes(), Stubs()

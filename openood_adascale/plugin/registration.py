"""Registers the package's postprocessors with OpenOOD, without changing a file of its.

:func:`register` puts a finder into ``sys.meta_path`` that has this module take part when modules of OpenOOD
are executed, in whatever order they are imported; :func:`unregister` undoes all of it.

The environment variable ``OPENOOD_ADASCALE_DISABLE`` has the last word: ``1`` (``all``, ``true``) switches
everything off, explicit calls of :func:`register` included, and a comma-separated list of ``register``,
``device``, ``stand-ins`` and ``memory`` switches off these parts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

from ..errors import SettingError
from . import former
from .devices import CudaRedirection
from .evaluator import EvaluatorPatch
from .finder import FINDER
from .own_names import OwnNames
from .process import LOCK, PARTS, VARIABLE, half_initialised, say, switched_off, unknown_words
from .sharing import SharedInference
from .stand_ins import StandIns
from .tables import Tables


def register() -> None:
    """Have OpenOOD know this package's postprocessors, and run on this machine.

    Can be called before or after OpenOOD is imported, and again. With torch 2.5 or later, importing torch and
    then OpenOOD does the same. ``OPENOOD_ADASCALE_DISABLE`` can forbid it.
    """
    if switched_off():
        return
    if unknown := unknown_words():
        say(f"{VARIABLE}: ignoring {', '.join(map(repr, unknown))}; known are 1, {', '.join(PARTS)}")
    with LOCK:
        if not _tables.active:
            _tables.active = True
            _pending.update(name for name in list(sys.modules) if name.startswith("openood."))
        FINDER.start(_execute, _catch_up, {former.MODULE: former.__file__})
    _catch_up()


def register_dataset(description: str | os.PathLike[str] | Mapping[str, Any]) -> str:
    """Have OpenOOD know a data set of one's own by a name, for its ``Evaluator``; calls :func:`register`.

    It replaces an earlier one of one's own of that name, and is forgotten by :func:`unregister`.

    Args:
        description: a yml, or a dict of what would be in it; a dict's relative paths begin at the working directory, and its
            ``preprocessing`` may be a function of a PIL image.

    Returns:
        The name, for ``id_name``.

    Raises:
        SettingError: something in it is unknown or cannot be used, an image set is not there, a label is missing or wrong,
            OpenOOD has that name, or this package is not to take part.
    """
    if switched_off("register"):
        raise SettingError(VARIABLE, os.environ[VARIABLE], "no 1 or register beside data sets of one's own")
    from .own_data import parse, read  # late, since they import torch
    from .own_preprocessing import is_preset, preprocessing_for

    if isinstance(description, Mapping):
        own = parse(description, "data set", os.getcwd())
    else:
        own = read(description)
    own.look()
    # Presets are OpenOOD's, which may not be there yet.
    if not is_preset(own.preprocessing) or "openood.evaluation_api.preprocessor" in sys.modules:
        preprocessing_for(own.preprocessing, own.place)
    register()
    OWN_NAMES.add(own)
    return own.name


def unregister() -> None:
    """Undo :func:`register`: what it, and OpenOOD's imports since, put in place and nobody has changed since.

    A postprocessor that exists goes on working. With nothing registered, this does nothing.
    """
    with LOCK:
        FINDER.stop()
        _pending.clear()
        _tables.undo()
        _evaluator.undo()
        _sharing.undo()
        OWN_NAMES.undo()
        _cuda.undo()
        _stand_ins.undo()


@contextmanager
def tables_noted(tables: list[Any]) -> Iterator[None]:
    """Have the tables that OpenOOD's Evaluator finds meanwhile appended to ``tables``, while this package is registered."""
    _evaluator.listeners.append(tables.append)
    try:
        yield
    finally:
        _evaluator.listeners.remove(tables.append)


def within_evaluator(evaluator: Any, function: Callable[[Any], Any]) -> Any:
    """``function(evaluator)``, on stored activations where these serve the Evaluator's postprocessor."""
    return _evaluator.within(evaluator, function)


def cuda_is(device: Any) -> AbstractContextManager[None]:
    """OpenOOD's ``.cuda()`` calls meanwhile go to ``device``, a torch.device; not with ``device`` switched off."""
    return _cuda.going_to(device)


def _execute(module: ModuleType, run: Callable[[ModuleType], None]) -> None:
    """Execute ``module`` of OpenOOD's by ``run(module)``, OpenOOD's own part, and do ours around it."""
    with _stand_ins.during(module):
        run(module)
    _patch(module)


def _catch_up() -> None:
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
            if _tables.active:
                _cuda.redirect(module)
    except Exception as error:
        say(f"cannot redirect CUDA for {_story(module, error)}")
    try:
        if not switched_off("register"):
            _tables.enter(module)
            with LOCK:
                if _tables.active:
                    _evaluator.enter(module)
                    _sharing.enter(module)
            if _tables.active:
                OWN_NAMES.enter(module)
    except Exception as error:
        say(f"cannot register with {_story(module, error)}")


def _is_ours(postprocessor: Any) -> bool:
    ours = _classes()
    return (
        postprocessor in ours
        if isinstance(postprocessor, str)
        else isinstance(postprocessor, tuple(ours.values()))
    )


def _story(module: ModuleType, error: Exception) -> str:
    return f"{module.__name__}, which works as without this package: {type(error).__name__}: {error}"


def _classes() -> Mapping[str, Any]:
    from .postprocessor import POSTPROCESSORS  # late, since it imports torch and OpenOOD's base class

    return POSTPROCESSORS


_pending: set[str] = set()  # modules that were half-initialised when we came
_tables, _cuda, _stand_ins = Tables(_classes), CudaRedirection(), StandIns()
OWN_NAMES = OwnNames()
_evaluator, _sharing = EvaluatorPatch(_is_ours, OWN_NAMES), SharedInference()

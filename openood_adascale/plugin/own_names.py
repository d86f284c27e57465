"""Data sets of one's own as names that OpenOOD knows.

``OPENOOD_ADASCALE_DATASETS`` names ymls, separated as paths are; :func:`~.registration.register_dataset` takes more. While
there are none, nothing of OpenOOD's is changed. Imports only the standard library until there is one.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import SettingError
from .changes import Changes, rebind
from .process import LOCK, half_initialised, say
from .script_data import say_how_to_run

if TYPE_CHECKING:
    from .own_data import OwnData
    from .own_preprocessing import Preprocessing

VARIABLE = "OPENOOD_ADASCALE_DATASETS"
_DATASETS = "openood.evaluation_api.datasets"
_PREPROCESSOR = "openood.evaluation_api.preprocessor"
_NUMBERS = "openood.postprocessors.info"
_NORMALIZATION = "openood.preprocessors.transform"
_TABLES = {
    _DATASETS: "DATA_INFO",
    _PREPROCESSOR: "default_preprocessing_dict",
    _NUMBERS: "num_classes_dict",
    _NORMALIZATION: "normalization_dict",
}
"""OpenOOD's tables by ID data set."""


class OwnNames:
    """The data sets, and what :meth:`enter` has changed in OpenOOD's modules for them."""

    def __init__(self) -> None:
        self._sets: dict[str, OwnData] = {}
        self._entries: dict[str, Changes] = {}
        self._prepared: dict[str, Preprocessing] = {}
        self._refused: dict[str, SettingError] = {}  # names that OpenOOD has, or that two ymls have
        self._unread: list[SettingError] = []  # of the variable
        self._read = False
        self._wrappers: list[tuple[Callable[..., Any], Callable[..., Any]]] = []  # with what they wrap

    def __contains__(self, name: object) -> bool:
        return name in self._sets

    def __iter__(self) -> Iterator[OwnData]:
        return iter(list(self._sets.values()))

    def read_variable(self) -> None:
        """Read the ymls that the variable names, once; one that cannot be read is said, and keeps no other from it."""
        with LOCK:
            if self._read:
                return
        paths = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path.strip()]
        found, twice, errors = _read_all(paths) if paths else ([], {}, [])
        with LOCK:
            if self._read:  # a thread was faster
                return
            self._read = True
            self._unread = errors
            # What was registered in Python was chosen later than the variable.
            self._sets = {**{own.name: own for own in found}, **self._sets}
            self._refused.update({name: error for name, error in twice.items() if name not in self._sets})
        for error in (*errors, *twice.values()):
            say(str(error))
        say_how_to_run(self)

    def add(self, own: OwnData) -> None:
        """Have OpenOOD know a data set, in place of an earlier one of one's own of that name.

        Raises:
            SettingError: OpenOOD has that name.
        """
        with LOCK:
            self._forget(own.name)
            self._refused.pop(own.name, None)
            self._sets[own.name] = own
            try:
                for name in _TABLES:
                    module = sys.modules.get(name)
                    if module is not None and not half_initialised(module):
                        self._enter(module)
            except BaseException:
                self._forget(own.name)
                raise
            if own.name in self._refused:
                raise self._refused.pop(own.name)

    def remove(self, name: str) -> None:
        """Have OpenOOD forget a data set; one that is not there is no error."""
        with LOCK:
            self._forget(name)

    def enter(self, module: ModuleType) -> None:
        """Enter the data sets, if ``module``, which was just executed, has one of the tables."""
        if module.__name__ in _TABLES:
            self.read_variable()
            with LOCK:
                self._enter(module)

    def undo(self) -> None:
        """Take back what nobody has changed since, and forget all data sets. The caller holds the plugin's lock."""
        for name in list(self._sets):
            self._forget(name)
        while self._wrappers:
            rebind(*self._wrappers.pop())
        self._refused.clear()
        self._unread, self._read = [], False

    def prepare(self, name: Any) -> None:
        """See to it that all of a data set's description can be used, since it is asked for now; others are let pass.

        Raises:
            SettingError: it cannot; or there is no such data set, and the variable could not be read.
        """
        if not isinstance(name, str):
            return
        if name in self._refused:
            raise self._refused[name]
        if name in self._sets:
            self.preprocessing(name)
        elif self._unread and name not in vars(sys.modules[_DATASETS])[_TABLES[_DATASETS]]:
            raise self._unread[0]

    def require_csid(self, name: Any) -> None:
        """Of a data set of one's own.

        Raises:
            SettingError: it has no covariate-shifted images.
        """
        own = self._sets.get(name) if isinstance(name, str) else None
        if own is not None and not own.shifted:
            allowed = "at least one set, which fsood=True (--fsood) and eval_acc('csid') need"
            raise SettingError(f"{own.place}: csid", None, allowed)

    def get(self, name: str) -> OwnData:
        """The data set of that name.

        Raises:
            KeyError: there is none.
        """
        return self._sets[name]

    def preprocessing(self, name: str) -> Preprocessing:
        """Of a data set.

        Raises:
            SettingError: it cannot be used.
        """
        found = self._prepared.get(name)
        if found is not None:
            return found
        from .own_preprocessing import as_it_is, preprocessing_for

        own = self._sets[name]
        if own.loaders is not None and callable(own.preprocessing):
            found = as_it_is(own.preprocessing)
        else:
            found = preprocessing_for(own.preprocessing, own.place)
        with LOCK:
            if self._sets.get(name) is own:
                self._prepared[name] = found
                module = sys.modules.get(_NORMALIZATION)
                if module is not None:
                    self._enter_normalization(module, own)
        if found.normalization is None and own.loaders is None:
            say(
                f"{name}: its preprocessing shows no mean and std; OpenOOD's odin and godin take 0.5 for both"
            )
        return found

    def _forget(self, name: str) -> None:
        self._sets.pop(name, None)
        self._prepared.pop(name, None)
        if name in self._entries:
            self._entries.pop(name).undo()

    def _enter(self, module: ModuleType) -> None:
        # The functions first: where this OpenOOD has others, it is not to know the names, either.
        if self._sets and module.__name__ == _PREPROCESSOR:
            self._wrap(module, "get_default_preprocessor", "data_name", self._default_preprocessor)
        if self._sets and module.__name__ == _DATASETS:
            self._wrap(module, "data_setup", "id_data_name", _nothing_to_download)
            self._wrap(module, "get_id_ood_dataloader", "id_name", self._dataloaders)
        table = vars(module)[_TABLES[module.__name__]]
        for own in self:
            if own.name in table and not self._entries.get(own.name, Changes()).has(table, own.name):
                self._refuse(own, table)
            elif module.__name__ == _DATASETS:
                self._entry(own, table, _as_openoods(own))
            elif module.__name__ == _NUMBERS:
                self._entry(own, table, own.classes.count)
            elif module.__name__ == _NORMALIZATION:
                self._enter_normalization(module, own)

    def _entry(self, own: OwnData, table: dict[str, Any], value: Any) -> None:
        changes = self._entries.setdefault(own.name, Changes())
        if not changes.has(table, own.name):
            changes.set(table, own.name, value)

    def _enter_normalization(self, module: ModuleType, own: OwnData) -> None:
        prepared = self._prepared.get(own.name)
        if prepared is not None and prepared.normalization is not None:
            self._entry(own, vars(module)[_TABLES[_NORMALIZATION]], prepared.normalization)

    def _refuse(self, own: OwnData, table: Iterable[str]) -> None:
        self._forget(own.name)
        allowed = f"a name that OpenOOD does not have; it has {', '.join(table)}"
        self._refused[own.name] = error = SettingError(f"{own.place}: name", own.name, allowed)
        say(str(error))

    def _wrap(
        self, module: Any, name: str, parameter: str, ours: Callable[[OwnData, dict[str, Any]], Any]
    ) -> None:
        """Have ``ours`` called where a function of OpenOOD's is asked for a data set of one's own by this parameter."""
        original = vars(module)[name]
        if any(original is wrapper for wrapper, _ in self._wrappers):
            return
        signature = inspect.signature(original)
        if parameter not in signature.parameters:
            raise TypeError(f"{name}() has no parameter {parameter!r}")

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                arguments = signature.bind(*args, **kwargs).arguments
                own = self._sets.get(arguments[parameter])
            except TypeError:
                own = None
            return original(*args, **kwargs) if own is None else ours(own, arguments)

        setattr(module, name, wrapper)
        rebind(original, wrapper)
        self._wrappers.append((wrapper, original))

    def _default_preprocessor(self, own: OwnData, arguments: dict[str, Any]) -> Any:
        if arguments.get("att"):
            raise SettingError("att", True, f"False for {own.name}: OpenOOD attacks its own data sets only")
        return self.preprocessing(own.name).transform

    def _dataloaders(self, own: OwnData, arguments: dict[str, Any]) -> Any:
        if own.loaders is not None:
            return own.loaders
        from .own_images import loaders

        standard = self.preprocessing(own.name).transform
        return loaders(own, arguments["preprocessor"], standard, **arguments.get("loader_kwargs", {}))


def _nothing_to_download(own: OwnData, arguments: dict[str, Any]) -> None:
    pass


def _read_all(paths: Iterable[str]) -> tuple[list[OwnData], dict[str, SettingError], list[SettingError]]:
    """What ymls describe; of names that several have, errors; and the errors of those that cannot be read."""
    from .own_data import read

    found: dict[str, OwnData] = {}
    twice: dict[str, SettingError] = {}
    errors: list[SettingError] = []
    for path in paths:
        try:
            own = read(path.strip())
        except SettingError as error:
            errors.append(error.within(VARIABLE))
            continue
        first = found.setdefault(own.name, own)
        if first is not own:
            allowed = f"another name, since {first.place} has it"
            twice[own.name] = SettingError(f"{VARIABLE}: {own.place}: name", own.name, allowed)
    return [own for own in found.values() if own.name not in twice], twice, errors


def _as_openoods(own: OwnData) -> dict[str, Any]:
    """An entry of ``DATA_INFO``, with ``images`` where OpenOOD's have a list and a folder."""

    def named(sets: Any) -> dict[str, Any]:
        return {"datasets": list(sets), **{name: {"images": images.images} for name, images in sets.items()}}

    ood: dict[str, Any] = {"near": named(own.near), "far": named(own.far)}
    if own.ood_val is not None:
        ood["val"] = {"images": own.ood_val.images}
    return {
        "num_classes": own.classes.count,
        "id": {split: {"images": images.images} for split, images in own.known.items()},
        "csid": named(own.shifted),
        "ood": ood,
    }

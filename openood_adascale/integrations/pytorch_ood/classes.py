"""A class for each line of the registry, made when it is first asked for."""

from __future__ import annotations

import inspect
import re
from typing import Any

from ...detectors.registry import METHODS, Method
from .detector import MethodDetector

_classes: dict[str, type[MethodDetector]] = {}


def names() -> dict[str, Method]:
    """The classes' names, and the lines of the registry that they are of."""
    found: dict[str, Method] = {}
    for method in METHODS.values():
        name = method.where.rpartition(":")[2]
        found[re.sub(r"\W+", "_", method.label) if name in found else name] = method
    return found


def class_of(name: str, module: str) -> type[MethodDetector]:
    """The class of this name in ``module``, the same each time.

    Raises:
        KeyError: the registry has no such method.
    """
    method = names()[name]
    if name not in _classes or _classes[name].method != method:
        _classes[name] = type(name, (MethodDetector,), _content(method, name, module))
    return _classes[name]


def _content(method: Method, name: str, module: str) -> dict[str, Any]:
    kind = method.detector
    settings = kind.settings_class
    defaults = settings.from_mapping(method.defaults)
    fitted = ".fit(loader)" if kind.learns else ""
    content: dict[str, Any] = {
        "__module__": module,
        "__doc__": f"""{method.label} as a detector of pytorch-ood's: :class:`~{kind.__module__}.{kind.__qualname__}`
    with the sign turned round. Its settings are :class:`~{settings.__module__}.{settings.__qualname__}`'s.

    >>> scores = {name}(model){fitted}.predict(images)    # larger is more out-of-distribution
    """,
        "method": method,
        "requires_fit": kind.learns,
        "hyperparameter_space": {
            setting.removesuffix("_list"): list(values) for setting, values in kind.default_sweep.items()
        },
        "__signature__": _signature(defaults),
    }
    for setting in defaults.names():
        if not hasattr(MethodDetector, setting):
            content[setting] = _as_attribute(setting)
    return content


def _as_attribute(setting: str) -> property:
    def read(self: MethodDetector) -> Any:
        return getattr(self.settings, setting)

    def write(self: MethodDetector, value: Any) -> None:
        self.set_hyperparameters(**{setting: value})

    return property(read, write, doc=f"The setting {setting}.")


def _signature(defaults: Any) -> inspect.Signature:
    positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter("model", positional),
            inspect.Parameter("settings", positional, default=None),
            *(inspect.Parameter(name, keyword, default=getattr(defaults, name)) for name in defaults.names()),
        ]
    )

"""This package's postprocessors of OpenOOD, as classes that pickles name; they follow from the registry of methods."""

from __future__ import annotations

from ..detectors.registry import Method
from .adapter import DetectorPostprocessor
from .names import postprocessor_methods


def _class_of(method: Method) -> type[DetectorPostprocessor]:
    """``AdaSCALEPostprocessor`` of ``adascale``, ``AdaSCALELogitPostprocessor`` of ``adascale_logit``: the detector's
    class, and what the method's name adds to that of the detector's file."""
    added = method.name.removeprefix(method.where.partition(":")[0]).split("_")
    name = method.detector.__name__ + "".join(word.capitalize() for word in added) + "Postprocessor"
    content = {
        "__module__": __name__,  # where pickles look for it
        "__doc__": f"``{method.name}``: {method.label}.",
        "method": method,
        "detector_class": method.detector,
    }
    return type(name, (DetectorPostprocessor,), content)


_METHODS = postprocessor_methods()
_CLASSES = {method.name: _class_of(method) for method in _METHODS.values()}
_BY_CLASS_NAME = {cls.__name__: cls for cls in _CLASSES.values()}

POSTPROCESSORS = {name: _CLASSES[method.name] for name, method in _METHODS.items()}
"""Names in OpenOOD, presets among them, and what they stand for."""


def __getattr__(name: str) -> type[DetectorPostprocessor]:
    """``AdaSCALEPostprocessor`` and the like, for imports and pickles."""
    if name not in _BY_CLASS_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _BY_CLASS_NAME[name]

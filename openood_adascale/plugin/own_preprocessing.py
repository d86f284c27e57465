"""What a data set of one's own names as its preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import SettingError
from ..evaluation.transforms import ALLOWED, Transform, transform_for


@dataclass(frozen=True)
class Preprocessing:
    """A transform, and what it normalises by."""

    transform: Transform
    normalization: list[list[float]] | None
    """Mean and standard deviation of each channel, as OpenOOD's tables have them; None where they do not show."""


def is_preset(spec: str | Callable[..., Any]) -> bool:
    """Whether that is OpenOOD's to know: a name and nothing more."""
    return isinstance(spec, str) and ":" not in spec and "=" not in spec


def preprocessing_for(spec: str | Callable[..., Any], place: str) -> Preprocessing:
    """The preprocessing that ``spec`` names.

    Args:
        spec: one of OpenOOD's presets by its ID data set, or what
            :func:`~openood_adascale.evaluation.transforms.transform_for` takes.
        place: where it is named, for errors.

    Raises:
        SettingError: there is no such thing, or it cannot be used.
    """
    if isinstance(spec, str) and is_preset(spec):
        return _preset(spec, place)
    try:
        transform, _ = transform_for("", None, None, spec)
    except SettingError as error:
        raise SettingError(f"{place}: preprocessing", error.value, error.allowed) from error
    return Preprocessing(transform, _normalization(transform))


def as_it_is(transform: Transform) -> Preprocessing:
    """That of a transform that images are read with already: it is not tried out."""
    return Preprocessing(transform, _normalization(transform))


def _preset(name: str, place: str) -> Preprocessing:
    from openood.evaluation_api import preprocessor as openoods

    presets = openoods.default_preprocessing_dict
    if name not in presets:
        allowed = f"one of OpenOOD's presets ({', '.join(presets)}), {ALLOWED}"
        raise SettingError(f"{place}: preprocessing", name, allowed)
    return Preprocessing(openoods.get_default_preprocessor(name), presets[name]["normalization"])


def _normalization(transform: Any) -> list[list[float]] | None:
    """Of torchvision's presets, and of what ends in a ``Normalize``."""
    steps = getattr(transform, "transforms", None)
    last = steps[-1] if isinstance(steps, list) and steps else transform
    try:
        return [[float(number) for number in numbers] for numbers in (last.mean, last.std)]
    except (AttributeError, TypeError, ValueError):
        return None

"""Settings of detectors: frozen dataclasses that check every value, from Python, YAML or the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import numpy as np
import yaml

from ..errors import SettingError, key_text
from ..features.extractor import MEMORY_FORMATS, PRECISIONS, InferenceSettings
from ..features.statistics import FeatureRequest

if TYPE_CHECKING:
    from typing_extensions import Self

INFERENCE = ("precision", "memory_format", "forward_batch_size")
"""Names of the inference settings."""
SPLITS = ("train", "val")
"""Splits that a method can be fitted on, by OpenOOD's names."""


class InferenceOptions(TypedDict, total=False):
    """Keywords of every detector; see :class:`Settings`."""

    precision: str
    memory_format: str
    forward_batch_size: int | None


# Checks: each returns the value in its own type, or raises a SettingError with the setting's name.


def number_within(name: str, value: Any, interval: str) -> float:
    """Return ``value`` as a float within an interval such as ``(0, 100]`` or ``[1, inf)``."""
    low, high = map(float, interval[1:-1].split(","))
    number = _number(value)
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    if not (above and below):
        raise SettingError(name, value, f"a number in {interval}")
    return number


def whole_number(name: str, value: Any, low: int, high: int = 2**63 - 1) -> int:
    """Return ``value`` as an exact int within [``low``, ``high``]."""
    found = value
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = int(found)
    if not isinstance(found, numbers.Integral):
        found = _number(found)
    is_whole = not isinstance(found, bool) and (isinstance(found, numbers.Integral) or found.is_integer())
    if not (is_whole and low <= found <= high):
        raise SettingError(name, value, f"a whole number from {low} to {high}")
    return int(found)


def _number(value: Any) -> float:
    """Return a finite float (NaN for anything else)."""
    try:
        # YAML reads 5e-1 as text, and a command line gives text.
        real = isinstance(value, str | numbers.Real) and not isinstance(value, bool | np.bool_)
        number = float(value) if real else math.nan
    except (ValueError, OverflowError):  # text, or an int that no float can hold
        return math.nan
    return number if math.isfinite(number) else math.nan


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``allowed``."""
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise SettingError(name, value, "one of " + ", ".join(map(repr, allowed)))
    return str(value)  # NumPy strings are not plain ones


def percentile_pair(name: str, value: Any, distinct: bool = False) -> tuple[float, float]:
    """Return ``value`` as two percentiles, the smaller first; ``distinct`` ones must differ."""
    value = restore_list(value)
    low, high = map(_number, value) if isinstance(value, list | tuple) and len(value) == 2 else (0.0, 0.0)
    if not 0 < low <= high < 100 or (distinct and low == high):
        shown = list(value) if isinstance(value, tuple) else value
        relation = "<" if distinct else "<="
        raise SettingError(name, shown, f"a pair [p_min, p_max] with 0 < p_min {relation} p_max < 100")
    return low, high


def setting(default: Any, check: Callable[..., Any], *arguments: Any) -> Any:
    """Return a dataclass field whose values go through ``check(name, value, *arguments)``; None only as the default."""
    metadata = {"check": lambda name, value: check(name, value, *arguments)}
    return dataclasses.field(default=default, metadata=metadata)


def restore_list(value: Any) -> Any:
    """Return the list that OpenOOD's command line split into characters."""
    characters = isinstance(value, list | tuple) and all(isinstance(c, str) for c in value)
    if characters and value[:1] in (["["], ["("], ("[",), ("(",)):
        value = "".join(value)
    if isinstance(value, str) and value.startswith(("[", "(")):
        with contextlib.suppress(yaml.YAMLError):
            return read_yaml(value.replace("(", "[").replace(")", "]"))
    return value


def read_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Parse YAML.

    Raises:
        yaml.YAMLError: Invalid YAML, including the cases for which PyYAML raises Python's own errors (``2001-99-99``,
            ``!!int a``, deep nesting).
    """
    try:
        return yaml.load(text, loader)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error


def section_of(name: str, value: Any) -> dict[Any, Any]:
    """Return ``value`` as a dict; None is an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise SettingError(name, value, "a section of names and values")
    return dict(value or {})


@dataclass(frozen=True)
class Settings:
    """Base of every method's settings; the values are checked on creation.

    The fields of this class are inference settings and are not searched.

    >>> Settings(forward_batch_size="64", precision="auto").inference
    InferenceSettings(precision='auto', memory_format='auto', forward_batch_size=64)

    Args:
        precision: Autocast precision of the forward passes: ``float32``, ``bfloat16``, ``float16``, or ``auto``, the
            fastest that the device supports in hardware. Head, statistics and energy are float32 or float64 regardless.
        memory_format: Memory format of image batches: ``contiguous``, ``channels_last``, or ``auto``, the faster one.
        forward_batch_size: Images per forward pass (default: the loader's batches, on a CPU in chunks that fit its
            caches). Chunks are halved on CUDA out of memory.
    """

    precision: str = setting("float32", one_of, PRECISIONS)
    memory_format: str = setting("auto", one_of, MEMORY_FORMATS)
    forward_batch_size: int | None = setting(None, whole_number, 1)

    not_swept: ClassVar[frozenset[str]] = frozenset()
    """Settings that must be the same for all candidates of a search."""
    score_only: ClassVar[frozenset[str]] = frozenset()
    """Settings that fitting does not depend on."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, check = getattr(self, field.name), field.metadata.get("check")
            if check is not None and not (value is None and field.default is None):
                object.__setattr__(self, field.name, check(field.name, value))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all settings, the inference settings last."""
        names = [f.name for f in dataclasses.fields(cls)]
        return tuple(sorted(names, key=INFERENCE.__contains__))

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any] | None, where: str = "settings", **defaults: Any
    ) -> Self:
        """Create settings from a YAML file's ``postprocessor_args``.

        Args:
            mapping: Values by name.
            where: Name of the section in errors.
            defaults: Values that ``mapping`` overrides.

        Raises:
            SettingError: Not a mapping, an unknown key, or a value out of range.
        """
        mapping = section_of(where, mapping)
        for key in mapping:
            if key not in cls.names():
                allowed = "one of: " + ", ".join(cls.names())
                raise SettingError(f"{where}: {key_text(key)}", mapping[key], allowed)
        return cls(**{**defaults, **mapping})

    def replace(self, **changes: Any) -> Self:
        """Return the settings with ``changes``, checked again."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, texts and lists, as in a YAML file."""
        chosen = {name: getattr(self, name) for name in self.names()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}

    def request(self) -> FeatureRequest:
        """Return the feature request of these settings."""
        return FeatureRequest()

    @property
    def inference(self) -> InferenceSettings:
        """The inference settings."""
        return InferenceSettings(self.precision, self.memory_format, self.forward_batch_size)

    @property
    def split(self) -> str:
        """Split that the method is fitted on, ``val`` or ``train``, by OpenOOD's names."""
        return str(getattr(self, "fit_split", "val"))

    def fit_settings(self) -> dict[str, Any]:
        """Return the settings that the fitted state depends on."""
        without = {*self.score_only, "memory_format", "forward_batch_size"}
        return {name: value for name, value in self.as_dict().items() if name not in without}

    def doubts(self) -> list[str]:
        """Return a sentence for each setting that is allowed but probably not meant."""
        given = getattr(self, "percentile", None)
        percentiles = given if isinstance(given, tuple) else () if given is None else (given,)
        if not percentiles or max(percentiles) > 1:
            return []
        shown = " and ".join(f"{p:g} %" for p in percentiles)
        meant = " and ".join(f"{100 * p:g}" for p in percentiles)
        return [
            f"percentile = {given!r} is {shown}, since percentiles are in percent here; expected {meant} if these are "
            "fractions, as in pytorch-ood and in ASH's and SCALE's code"
        ]


def warn_if_doubtful(candidates: Iterable[Settings]) -> None:
    """Warn about the first settings that are allowed but probably not meant."""
    doubts = next(filter(None, (settings.doubts() for settings in candidates)), [])
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=3)

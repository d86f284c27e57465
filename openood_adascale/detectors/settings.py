"""What every method's settings have in common; checked once, where they come in (Python, yml, command line)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import yaml

from ..errors import SettingError
from ..evidence.plan import BATCHES, MEMORY_FORMATS, PRECISIONS, Execution, Plan

if TYPE_CHECKING:
    from typing_extensions import Self

EXECUTION = ("precision", "memory_format", "batch")
"""Settings that say how the network is run."""
SOURCES = ("train", "val")
"""Whose images a method can learn from, by OpenOOD's names of the loaders."""


def _number(name: str, value: Any, allowed: str) -> float:
    if isinstance(value, str):  # YAML reads 5e-1 as text, and so arrives what a command line gives
        try:
            value = float(value)
        except ValueError:
            raise SettingError(name, value, allowed) from None
    try:
        finite = (
            isinstance(value, numbers.Real)
            and not isinstance(value, bool | np.bool_)
            and math.isfinite(value)
        )
    except OverflowError:  # an int that no float can hold
        finite = False
    if not finite:
        raise SettingError(name, value, allowed)
    return float(value)


def number_within(
    name: str, value: Any, low: float, high: float = math.inf, *, brackets: str = "()"
) -> float:
    """``value`` as a float within the interval that ``brackets`` (``()``, ``(]``, ``[)``, ``[]``) describe."""
    allowed = f"a number in {brackets[0]}{low:g}, {high:g}{brackets[1]}"
    number = _number(name, value, allowed)
    above = number >= low if brackets[0] == "[" else number > low
    below = number <= high if brackets[1] == "]" else number < high
    if not (above and below):
        raise SettingError(name, value, allowed)
    return number


def whole_number(name: str, value: Any, low: int, high: int = 2**63 - 1) -> int:
    """``value`` as an int within [``low``, ``high``], to the last digit."""
    allowed = f"a whole number from {low} to {high}"
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = int(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
    else:
        given = _number(name, value, allowed)
        if not given.is_integer():
            raise SettingError(name, value, allowed)
        number = int(given)
    if not low <= number <= high:
        raise SettingError(name, value, allowed)
    return number


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """``value`` if it is one of ``allowed``."""
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise SettingError(name, value, "one of " + ", ".join(map(repr, allowed)))
    return str(value)  # NumPy's words are no plain ones


def _batch(value: Any) -> str | int:
    if isinstance(value, str) and value in BATCHES:
        return str(value)
    try:
        return whole_number("batch", value, 1)
    except SettingError:
        raise SettingError("batch", value, f"{' or '.join(BATCHES)}, or a whole number from 1 on") from None


def percentile_pair(
    name: str, value: Any, allowed: str = "a pair [p_min, p_max] with 0 < p_min <= p_max < 100"
) -> tuple[float, float]:
    """``value`` as two percentiles, the smaller first."""
    value = unscramble(value)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise SettingError(name, value, allowed)
    try:
        low, high = (number_within(name, p, 0, 100) for p in value)
    except SettingError:
        raise SettingError(name, list(value), allowed) from None
    if low > high:
        raise SettingError(name, list(value), allowed)
    return low, high


def unscramble(value: Any) -> Any:
    """A list that OpenOOD's command line took apart into characters, put together again."""
    characters = isinstance(value, list | tuple) and all(isinstance(c, str) for c in value)
    if characters and value[:1] in (["["], ["("], ("[",), ("(",)):
        value = "".join(value)
    if isinstance(value, str) and value.startswith(("[", "(")):
        try:
            return read_yaml(value.replace("(", "[").replace(")", "]"))
        except yaml.YAMLError:
            return value
    return value


def read_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """What YAML stands for.

    Raises:
        yaml.YAMLError: for whatever is wrong with it; of ``2001-99-99``, ``!!int a`` or deep nesting PyYAML lets Python's
            own errors out.
    """
    try:
        return yaml.load(text, loader)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error


def section_of(name: str, value: Any) -> dict[Any, Any]:
    """``value`` as a dict; None stands for an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise SettingError(name, value, "a section of names and values")
    return dict(value or {})


@dataclass(frozen=True)
class Settings:
    """Base of every method's settings; a frozen dataclass whose fields are checked when it is made.

    The fields that stand here say how the network is run, and are not searched.

    >>> Settings(batch="64", precision="auto").execution
    Execution(precision='auto', memory_format='auto', batch=64)
    """

    precision: str = "float32"
    """Of the network's pass: ``float32``, ``bfloat16``, ``float16``, or ``auto``, the fastest that its device has
    arithmetic for. The head, the statistics and the energy are float32 or float64 whatever it is."""
    memory_format: str = "auto"
    """Of image batches: ``contiguous``, ``channels_last``, or ``auto``, the faster."""
    batch: str | int = "loader"
    """Images that go through the network at a time: ``loader``, as many as it gives; ``auto``, the largest number that pays,
    found by trying; or a number."""

    not_swept: ClassVar[frozenset[str]] = frozenset()
    """Settings that say where numbers come from rather than what to do with them: the same for all candidates."""

    only_judge: ClassVar[frozenset[str]] = frozenset()
    """Settings that what the method learns does not depend on."""

    def __post_init__(self) -> None:
        self._set("precision", one_of("precision", self.precision, PRECISIONS))
        self._set("memory_format", one_of("memory_format", self.memory_format, MEMORY_FORMATS))
        self._set("batch", _batch(self.batch))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The settings' names, the method's own first."""
        names = [f.name for f in dataclasses.fields(cls)]
        return tuple(sorted(names, key=EXECUTION.__contains__))

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any] | None, where: str = "settings", **defaults: Any
    ) -> Self:
        """Settings from a yml's ``postprocessor_args`` or keyword arguments.

        Raises:
            SettingError: no mapping, an unknown key, or a value out of range.
        """
        mapping = section_of(where, mapping)
        for key in mapping:
            if key not in cls.names():
                raise SettingError(f"{where}: {key}", mapping[key], "one of: " + ", ".join(cls.names()))
        return cls(**{**defaults, **mapping})

    def replace(self, **changes: Any) -> Self:
        """The same settings but for ``changes``, checked again."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, as they would stand in a yml."""
        chosen = {name: getattr(self, name) for name in self.names()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}

    def plan(self) -> Plan:
        """What these settings ask of the images."""
        return Plan()

    @property
    def execution(self) -> Execution:
        """How the network is to be run."""
        return Execution(self.precision, self.memory_format, self.batch)

    @property
    def source(self) -> str:
        """Whose images the method learns from: ``val`` or ``train``, OpenOOD's names of the loaders."""
        return "val"

    def learnt_with(self) -> dict[str, Any]:
        """Those settings that what a method learns depends on."""
        chosen = self.as_dict()
        without = {*self.only_judge, "memory_format", "batch"}
        return {name: chosen[name] for name in chosen if name not in without}

    def warn_if_doubtful(self) -> bool:
        """Warn where the settings are allowed but probably not meant; whether that was so."""
        return False

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

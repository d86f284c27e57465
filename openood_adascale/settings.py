"""Settings: validated once, where they come in (Python, yml, command line), and the candidates of a search."""

from __future__ import annotations

import dataclasses
import math
import numbers
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import yaml

from . import functional as F
from .encode import MEMORY_FORMATS, PRECISIONS, Perturbation
from .evidence import Plan

EXECUTION = ("precision", "memory_format")
"""Settings that say how the network is run."""


class SettingError(ValueError):
    """A setting that is unknown or out of range; names it, its value and what is allowed."""

    def __init__(self, name: str, value: Any, allowed: str) -> None:
        super().__init__(f"{name}: {value!r} is not allowed; expected {allowed}")
        self._arguments = name, value, allowed

    def __reduce__(self) -> tuple:  # errors cross process borders
        return SettingError, self._arguments


def _number(name: str, value: Any, allowed: str) -> float:
    if isinstance(value, str):  # YAML reads 5e-1 as text, and so arrives what a command line gives
        try:
            value = float(value)
        except ValueError:
            raise SettingError(name, value, allowed) from None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
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


def whole_number(name: str, value: Any, low: int) -> int:
    """``value`` as an int of at least ``low``."""
    allowed = f"a whole number of at least {low}"
    number = _number(name, value, allowed)
    if number != int(number) or number < low:
        raise SettingError(name, value, allowed)
    return int(number)


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """``value`` if it is one of ``allowed``."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise SettingError(name, value, "one of " + ", ".join(map(repr, allowed)))
    return value


def unscramble(value: Any) -> Any:
    """A list that OpenOOD's command line took apart into characters, put together again."""
    if (
        isinstance(value, list | tuple)
        and value[:1] in (["["], ["("])
        and all(isinstance(c, str) for c in value)
    ):
        value = "".join(value)
    if isinstance(value, str) and value[:1] in "[(":
        try:
            return yaml.safe_load(value.replace("(", "[").replace(")", "]"))
        except yaml.YAMLError:
            return value
    return value


@dataclass(frozen=True)
class Settings:
    """Base of every method's settings; a frozen dataclass whose fields are checked when it is made.

    The fields that stand here say how the network is run, and are not searched.
    """

    precision: str = "float32"
    """Of the network's pass: ``float32``, ``bfloat16``, ``float16``, or ``auto``, the fastest that its device has
    arithmetic for. The head, the statistics and the energy are float32 or float64 whatever it is."""
    memory_format: str = "auto"
    """Of image batches: ``contiguous``, ``channels_last``, or ``auto``, the faster."""

    not_swept: ClassVar[frozenset[str]] = frozenset()
    """Settings that say where numbers come from rather than what to do with them: the same for all candidates."""

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISIONS)
        one_of("memory_format", self.memory_format, MEMORY_FORMATS)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The settings' names, the method's own first."""
        names = [f.name for f in dataclasses.fields(cls)]
        return tuple(sorted(names, key=EXECUTION.__contains__))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | None, where: str = "settings", **defaults: Any) -> Any:
        """Settings from a yml's ``postprocessor_args`` or keyword arguments.

        Raises:
            SettingError: an unknown key, or a value out of range.
        """
        mapping = dict(mapping or {})
        for key in mapping:
            if key not in cls.names():
                raise SettingError(
                    f"{where}: {key}", mapping[key], "no such setting; known are " + ", ".join(cls.names())
                )
        return cls(**{**defaults, **mapping})

    def replace(self, **changes: Any) -> Any:
        """The same settings but for ``changes``, checked again."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, as they would stand in a yml."""
        return {name: _plain(getattr(self, name)) for name in self.names()}

    def plan(self) -> Plan:
        """What these settings ask of the images."""
        return Plan()

    def learns_from(self) -> str:
        """Whose images the method learns from: ``val`` or ``train``, OpenOOD's names of the loaders."""
        return "val"

    def warn_if_doubtful(self) -> bool:
        """Warn where the settings are allowed but probably not meant; whether that was so."""
        return False

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _set_percentile_pair(self) -> None:
        value = unscramble(self.percentile)  # type: ignore[attr-defined]
        allowed = "a pair [p_min, p_max] with 0 < p_min <= p_max < 100"
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise SettingError("percentile", value, allowed)
        try:
            pair = tuple(number_within("percentile", p, 0, 100) for p in value)
        except SettingError:
            raise SettingError("percentile", list(value), allowed) from None
        if pair[0] > pair[1]:
            raise SettingError("percentile", list(value), allowed)
        self._set("percentile", pair)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class AdaSCALESettings(Settings):
    """AdaSCALE's hyperparameters, named as the paper names them.

    Raises:
        SettingError: a value out of range, when made.
    """

    variant: str = "A"
    """``A`` scales the activation by exp(r), ``L`` the logits by r²."""
    percentile: tuple[float, float] = (80.0, 85.0)
    """(p_min, p_max) in percent, 0 < p_min <= p_max < 100."""
    k1: float = 1.0
    """Percent of the activations, the largest, in Q; in (0, 100]."""
    k2: float = 5.0
    """Percent of the activations, the largest, in C_o; in (0, 100]."""
    lmbda: float = 10.0
    """λ >= 0 of Q' = λ·Q + C_o."""
    o: float = 0.05
    """Fraction of the channel values that are perturbed, in (0, 1]."""
    epsilon: float = 0.5
    """ε > 0, how far they move, in units of the normalised image."""
    pixels: str = "trivial"
    """Which: ``trivial`` (smallest gradient), ``salient`` (largest), ``random`` (drawn by the seed), ``all``."""
    num_samples: int | None = None
    """How many of the validation images enter the CDF; None is all."""
    seed: int = 0
    """Of the choice of ``num_samples`` images and of ``random`` pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("variant", self.variant, F.VARIANTS)
        one_of("pixels", self.pixels, F.PIXELS)
        self._set_percentile_pair()
        self._set("k1", number_within("k1", self.k1, 0, 100, brackets="(]"))
        self._set("k2", number_within("k2", self.k2, 0, 100, brackets="(]"))
        self._set("lmbda", number_within("lmbda", self.lmbda, 0, brackets="[)"))
        self._set("o", number_within("o", self.o, 0, 1, brackets="(]"))
        self._set("epsilon", number_within("epsilon", self.epsilon, 0))
        if self.num_samples is not None:
            self._set("num_samples", whole_number("num_samples", self.num_samples, 1))
        self._set("seed", whole_number("seed", self.seed, 0))

    @property
    def perturbation(self) -> Perturbation:
        """The part of the settings that needs a pass of its own."""
        return Perturbation(self.pixels, self.o, self.epsilon, self.seed)

    def plan(self) -> Plan:
        return Plan(self.percentile, (self.k1,), (self.k2,), (self.perturbation,))

    def warn_if_doubtful(self) -> bool:
        """OpenOOD's own yml files name k1 and k2 the other way round; warn where that seems to be the case."""
        if self.k1 > self.k2:
            warnings.warn(
                f"k1 = {self.k1:g} is larger than k2 = {self.k2:g}. Here k1 belongs to the shift Q and k2 to the "
                "correction C_o, as in the paper (1 and 5). OpenOOD's adascale_a.yml and adascale_l.yml name them "
                "the other way round: exchange the two if these settings come from there",
                UserWarning,
                stacklevel=3,
            )
        return self.k1 > self.k2


def candidates(base: Settings, sweep: Mapping[str, Any] | None) -> list[Any]:
    """Every combination of a sweep's lists, in OpenOOD's order: the first setting runs fastest.

    Args:
        base: gives what is not swept.
        sweep: ``{"<setting>_list": [values]}`` in any order (``percentile_list`` holds pairs); the suffix may be
            left out.

    Raises:
        SettingError: no sweep, an empty list, an unknown setting, a value out of range.
    """
    swept = parse_sweep(type(base), sweep)
    combinations: list[dict[str, Any]] = [{}]
    for name, values in swept.items():
        combinations = [{**chosen, name: value} for value in values for chosen in combinations]
    return [base.replace(**chosen) for chosen in combinations]


def parse_sweep(settings_class: type[Settings], sweep: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """``{setting: values}`` of a yml's ``postprocessor_sweep``; see :func:`candidates`."""
    if not sweep:
        raise SettingError(
            "postprocessor_sweep", sweep, "at least one list <setting>_list, or APS_mode: False"
        )
    swept: dict[str, list[Any]] = {}
    for key, values in sweep.items():
        name = key.removesuffix("_list")
        if name not in settings_class.names():
            known = ", ".join(f"{n}_list" for n in settings_class.names())
            raise SettingError(f"postprocessor_sweep: {key}", values, "no such setting; known are " + known)
        if name in settings_class.not_swept or name in EXECUTION:
            raise SettingError(f"postprocessor_sweep: {key}", values, f"{name} in postprocessor_args alone")
        values = unscramble(values)
        if isinstance(values, range | np.ndarray):
            values = values if isinstance(values, range) else values.tolist()
        if not isinstance(values, list | tuple | range) or len(values) == 0:
            raise SettingError(f"postprocessor_sweep: {key}", values, "a list of at least one value")
        swept[name] = list(values)
    return swept

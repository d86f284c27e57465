"""Values for every setting, with what they mean; and, from the documents alone, what a setting makes of a meaning."""

from __future__ import annotations

import contextlib
import math
import numbers
import random
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch

from openood_adascale.detectors.settings import Settings

MEANT_WRONG = object()
"""What is not allowed."""
Rule = Callable[[Any], Any]


class Meant(NamedTuple):
    """A value as it is given, and what it means."""

    given: Any
    meaning: Any


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def within(low: float, high: float, *, with_low: bool = False, with_high: bool = False) -> Rule:
    """A number between two others."""

    def rule(value: Any) -> Any:
        found = _number(value)
        if found is None or not (low <= found <= high):
            return MEANT_WRONG
        if (found == low and not with_low) or (found == high and not with_high):
            return MEANT_WRONG
        return found

    return rule


def whole(low: int, high: int, besides: tuple[str, ...] = (), none: bool = False) -> Rule:
    """A whole number, or one of some words."""

    def rule(value: Any) -> Any:
        if value is None and none:
            return None
        if isinstance(value, str):
            if value in besides:
                return str(value)
            with contextlib.suppress(ValueError):
                value = int(value)
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            found = int(value)
        else:
            number = _number(value)
            if number is None or not number.is_integer():
                return MEANT_WRONG
            found = int(number)
        return found if low <= found <= high else MEANT_WRONG

    return rule


def word(*allowed: str) -> Rule:
    """One of some words."""
    return lambda value: str(value) if isinstance(value, str) and value in allowed else MEANT_WRONG


def pair(value: Any) -> Any:
    """Two percentiles, the smaller first."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return MEANT_WRONG
    low, high = (within(0, 100)(one) for one in value)
    if MEANT_WRONG in (low, high) or low > high:
        return MEANT_WRONG
    return low, high


_SHARED: dict[str, Rule] = {
    "precision": word("float32", "bfloat16", "float16", "auto"),
    "memory_format": word("auto", "contiguous", "channels_last"),
    "batch": whole(1, 2**63 - 1, ("loader", "auto")),
}
_PERCENT = within(0, 100, with_high=True)
_LEARN_FROM = word("train", "val")
FIELDS: dict[str, dict[str, Rule]] = {
    "Settings": _SHARED,
    "FixedPercentileSettings": {**_SHARED, "percentile": within(0, 100)},
    "LTSSettings": {**_SHARED, "percentile": within(0, 100)},
    "BFActSettings": {
        **_SHARED, "percentile": within(0, 100), "order": within(1, math.inf, with_low=True), "learn_from": _LEARN_FROM,
    },
    "OptFSSettings": {
        **_SHARED, "bins": whole(1, 2**20), "percentile": pair, "score": word("vanilla", "energy"),
        "learn_from": _LEARN_FROM,
    },
    "AdaSCALESettings": {
        **_SHARED, "variant": word("A", "L"), "percentile": pair, "k1": _PERCENT, "k2": _PERCENT,
        "lmbda": within(0, math.inf, with_low=True), "o": within(0, 1, with_high=True), "epsilon": within(0, math.inf),
        "pixels": word("trivial", "salient", "random", "all"), "num_samples": whole(1, 2**63 - 1, none=True),
        "seed": whole(0, 2**63 - 1),
    },
}  # fmt: skip
"""By class and setting, what a meaning becomes."""

_WORDS = (
    "A", "L", "B", "a", "trivial", "salient", "random", "all", "float32", "bfloat16", "float16", "auto", "contiguous",
    "channels_last", "loader", "vanilla", "energy", "train", "val", "", " ", "None", "\0", "\ud800", "é", "x" * 5000,
)  # fmt: skip
_TEXTS = (
    "5e-1",
    "1e400",
    "nan",
    "-inf",
    "1_0",
    " 7 ",
    "0x10",
    "1" * 5000,
    "9007199254740993",
    "1.0",
    "٣",
    "-0",
    "1e-400",
)
_BRACKETS = (
    "[", "(", "[" * 3000, "[[", "[80, 85", "[2001-99-99]", "[0x_]", "[!!int a]", "[!!python/object/apply:os.mkdir [x]]",
    "[{[1]: 2}]", "[*a]", "[!!timestamp x]", "[&a *a]", "[<<: 1]", "[!!binary é]", "[\0]",
)  # fmt: skip


_STRINGS = (*_WORDS, *_TEXTS, *_BRACKETS)


def _scrambled(rng: random.Random, low: float, high: float) -> Meant:
    """A pair as OpenOOD's command line hands it on, or written as text."""
    left, right = rng.choice(["[]", "()"])
    text = f"{left}{low}, {high}{right}"
    meaning = [float(str(low)), float(str(high))]
    return Meant(rng.choice([text, list(text), tuple(text), np.str_(text)]), meaning)


def _pairs(rng: random.Random) -> list[Meant]:
    low, high = (round(rng.uniform(-5, 105), rng.randint(0, 3)) for _ in range(2))
    low, high = (low, high) if rng.random() < 0.2 else sorted((low, high))
    inside = sorted(rng.uniform(0.001, 99.999) for _ in range(2))
    found = [
        [low, high],
        (low, high),
        inside,
        tuple(inside),
        [str(low), high],
        [low],
        [low, high, high],
        [[low, high]],
        [],
    ]
    found += [np.array([low, high]), np.array(inside), [np.float32(50), np.int64(60)], [np.array([1, 2]), 3]]
    found += [
        [None, None],
        ["a", "b"],
        [50, True],
        {50: 60},
        {50, 60},
        [math.nan, 60],
        [50, math.inf],
        [[], []],
    ]
    return [*(Meant(one, one) for one in found), *(_scrambled(rng, *sorted((low, high))) for _ in range(3))]


def _loop() -> list[Any]:
    found: list[Any] = [1]
    found.append(found)
    return found


def _laughs() -> list[Any]:
    """What shows as a billion words."""
    found: list[Any] = ["ha"] * 10
    for _ in range(12):
        found = [found] * 10
    return found


_ODD = (
    Fraction(3, 2), Fraction(10**400, 3), Fraction(10**400, 10**399), Decimal("1.5"), 0, 1, 100, 1e-320, 1e308, 2**53 + 1,
    2**63 - 1, 2**63, 10**400, 10**5000, -(10**5000), -0.0, math.nan, math.inf, -math.inf, np.float64("nan"),
    np.longdouble(2), np.uint64(2**64 - 1), np.bool_(True), True, False, None, 1 + 0j, np.complex64(1), object, object(),
    b"5", bytearray(b"5"), (), [], {}, {1: 2}, [5], (5,), {"a": [1]}, set(), range(3), np.array(5.0), np.array([5.0]),
    np.array([1, 2]), np.array([]), np.array(["A", "L"]), torch.tensor(5.0), torch.tensor([1, 2]), torch.tensor([]),
    lambda: 5, NotImplemented, ..., float, "e" * 9, np.datetime64("2001-01-01"), np.timedelta64(5), [0] * 100000,
    "[" * 5000, _loop(), _laughs(), {"a": _laughs()}, {10**5000}, [10**5000, 1],
)  # fmt: skip


def _numbers(rng: random.Random) -> list[Any]:
    number = rng.choice(
        [rng.uniform(0, 1), rng.uniform(-1, 101), rng.lognormvariate(0, 20), rng.randint(-2, 200)]
    )
    return [
        number, -number, int(number), str(number), np.float64(number), np.float32(number), np.int64(number % 1000),
        np.float16(number % 100), np.str_(str(number)),
    ]  # fmt: skip


def numbers_in(text: str) -> list[float]:
    """What a text can be read as."""
    found: list[float] = []
    for read in (int, float):
        with contextlib.suppress(ValueError):
            found.append(read(text))
    return found


def meanings(rng: random.Random, cls: type[Settings], name: str) -> tuple[list[Meant], list[Meant]]:
    """Values for a setting: right ones and wrong ones."""
    rule = FIELDS[cls.__name__][name]
    found = [*rng.sample(_ODD, 8), *rng.sample(_STRINGS, 4), *_numbers(rng)]
    if rule is not pair:
        words = rng.sample(_WORDS[:19], 10)
        found += [*words, *map(np.str_, words[:3]), None]
    drawn = [Meant(one, one) for one in found] + (_pairs(rng) if rule is pair else [])
    right = [one for one in drawn if rule(one.meaning) is not MEANT_WRONG]
    default = getattr(cls(), name)
    return right or [Meant(default, default)], [one for one in drawn if rule(one.meaning) is MEANT_WRONG]

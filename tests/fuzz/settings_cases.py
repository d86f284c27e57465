"""Settings and sweeps, right and wrong: an object whose fields are what was meant, or an error that names one of them."""

from __future__ import annotations

import json
import math
import random
import reprlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml
from fuzz.meaning import FIELDS, MEANT_WRONG, Meant, meanings, numbers_in
from fuzz.watch import require

from openood_adascale.detectors.registry import METHODS, Method
from openood_adascale.detectors.search import candidates
from openood_adascale.detectors.settings import Settings
from openood_adascale.errors import SettingError
from openood_adascale.plugin.yml import Configuration

NO_MAPPING = (0, 5, "k1", ["k1"], [("k1", 5)], None, (), b"x", 1.5, {"k1"}, True)
UNKNOWN = ("k3", "", "Percentile", " k1", "k1 ", 5, None, ("k1",), 1.5, "k1_list_list", True, b"k1")


def case(rng: random.Random, folder: Path) -> str:
    """One of a constructor, a mapping, a change, a sweep, or the section of a yml."""
    method = rng.choice(list(METHODS.values()))
    kinds = (_made, _made, _mapped, _mapped, _changed, _swept, _section)
    return rng.choice(kinds)(rng, method)


def _drawn(rng: random.Random, cls: type[Settings], most: int = 4) -> dict[str, Meant]:
    names = rng.sample(cls.names(), rng.randint(1, min(most, len(cls.names()))))
    found = {name: meanings(rng, cls, name) for name in names}
    return {
        name: rng.choice(right if rng.random() < 0.75 else wrong) for name, (right, wrong) in found.items()
    }


def _made(rng: random.Random, method: Method) -> str:
    cls = method.detector.settings_class
    drawn = _drawn(rng, cls)
    return _held(lambda: cls(**_given(drawn)), cls, drawn)


def _mapped(rng: random.Random, method: Method) -> str:
    cls = method.detector.settings_class
    drawn = _drawn(rng, cls)
    if rng.random() < 0.05:
        return _refused(lambda: cls.from_mapping(rng.choice(NO_MAPPING[:5])), "settings: ")
    if rng.random() < 0.1:
        key = rng.choice(UNKNOWN)
        given = {**_given(drawn), key: 1}
        return _refused(lambda: cls.from_mapping(given, "where"), f"where: {key}")
    return _held(lambda: cls.from_mapping(_given(drawn), "where", **method.defaults), cls, drawn)


def _changed(rng: random.Random, method: Method) -> str:
    cls = method.detector.settings_class
    drawn = _drawn(rng, cls)
    return _held(lambda: cls(**method.defaults).replace(**_given(drawn)), cls, drawn)


def _given(drawn: Mapping[str, Meant]) -> dict[str, Any]:
    return {name: meant.given for name, meant in drawn.items()}


def _held(make: Callable[[], Settings], cls: type[Settings], drawn: Mapping[str, Meant]) -> str:
    """What ``make`` gives against what the drawn values mean."""
    wanted = {name: FIELDS[cls.__name__][name](meant.meaning) for name, meant in drawn.items()}
    wrong = [name for name, value in wanted.items() if value is MEANT_WRONG]
    clash = cls.__name__ == "OptFSSettings" and not wrong and _equal_pair(wanted.get("percentile"))
    try:
        found = make()
    except SettingError as error:
        name = error.name.split(": ")[-1]
        require(
            name in wrong or (clash and name == "percentile"),
            f"{name} is refused: {error}; wrong are {wrong}",
        )
        _tells(error, drawn[name])
        return "SettingError"
    require(not wrong and not clash, f"{wrong or 'percentile'} taken: {_shown(_given(drawn))} gave {found!r}")
    for name, value in wanted.items():
        _same(getattr(found, name), value, name)
    usable(found)
    return "settings"


def _equal_pair(pair: Any) -> bool:
    return isinstance(pair, tuple) and pair[0] == pair[1]


def _tells(error: SettingError, meant: Meant) -> None:
    text = str(error)
    require(len(text) < 3000, f"a message of {len(text)} characters")
    require("expected" in text and error.allowed in text, f"nothing is said to be allowed: {text}")
    shown = [_shown(value) for value in (meant.given, meant.meaning)]
    shown += [_shown(list(value)) for value in (meant.given, meant.meaning) if isinstance(value, Sequence)]
    if isinstance(meant.meaning, str):
        shown += [str(number) for number in numbers_in(meant.meaning)]
    told = text.partition(": ")[2]
    require(any(one[:9] in told for one in shown), f"{text} without {shown}")


def _shown(value: Any) -> str:
    try:
        return _short.repr(value)
    except ValueError:  # an int with more digits than Python shows
        return ""


class _Short(reprlib.Repr):
    """Shows what a billion words would."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring = 3, 200


_short = _Short()


def _same(found: Any, wanted: Any, name: str) -> None:
    require(type(found) is type(wanted), f"{name}: {type(found).__name__} for {type(wanted).__name__}")
    require(found == wanted, f"{name}: {found!r} for {wanted!r}")


def usable(found: Settings) -> None:
    """What every settings object can do."""
    chosen = found.as_dict()
    for text, read in ((json.dumps(chosen), json.loads), (yaml.safe_dump(chosen), yaml.safe_load)):
        require(type(found).from_mapping(read(text)) == found, f"{text} gives other settings than {found!r}")
    require(hash(found) == hash(found.replace()), "two hashes")
    require(found.plan().covers(found.plan()), "a plan that does not cover itself")
    require({*found.learnt_with()} <= {*found.names()}, "learnt with what is no setting")
    found.warn_if_doubtful()
    require(found.source in ("train", "val") and found.execution.batch, "its source or execution")


def _refused(make: Callable[[], Any], name: str) -> str:
    try:
        found = make()
    except SettingError as error:
        require(name in str(error), f"{error} does not name {name}")
        return "SettingError"
    require(False, f"{name} taken: {found!r}")
    return ""


# Sweeps


def _sweep(rng: random.Random, cls: type[Settings]) -> tuple[dict[Any, Any], dict[str, list[Meant]]]:
    swept = [
        name for name in cls.names() if name not in (*cls.not_swept, "precision", "memory_format", "batch")
    ]
    lists = {}
    for name in rng.sample(swept, min(len(swept), rng.randint(1, 3))):
        right, wrong = meanings(rng, cls, name)
        pool = right if rng.random() < 0.85 else [*right, *wrong]
        lists[name] = [rng.choice(pool) for _ in range(rng.randint(1, 4))]
    given = {
        f"{name}_list" if rng.random() < 0.9 else name: [m.given for m in values]
        for name, values in lists.items()
    }
    return given, lists


def _swept(rng: random.Random, method: Method) -> str:
    cls = method.detector.settings_class
    given, lists = _sweep(rng, cls)
    base = cls(**method.defaults)
    if not given or rng.random() < 0.15:
        given = _spoilt(rng, given)
        return _refused(lambda: candidates(base, given), "postprocessor_sweep")
    wanted = {name: [FIELDS[cls.__name__][name](m.meaning) for m in values] for name, values in lists.items()}
    wrong = {name for name, values in wanted.items() if MEANT_WRONG in values}
    if cls.__name__ == "OptFSSettings" and any(map(_equal_pair, wanted.get("percentile", ()))):
        wrong.add("percentile")
    try:
        found = candidates(base, given)
    except SettingError as error:
        name = error.name.split(": ")[-1]
        taken_apart = {
            key for key, values in given.items() if isinstance(values[0], str) and values[0] in ("[", "(")
        }
        require(name in wrong or name in taken_apart, f"a right sweep refused: {_shown(given)}: {error}")
        return "SettingError"
    require(not wrong, f"{wrong} taken: {_shown(given)}")
    require(len(found) == math.prod(map(len, wanted.values())), f"{len(found)} candidates of {_shown(given)}")
    place = rng.randrange(len(found))
    left = place
    for name in (key.removesuffix("_list") for key in given):
        left, which = divmod(left, len(wanted[name]))
        _same(getattr(found[place], name), wanted[name][which], name)
    usable(found[place])
    return "sweep"


def _spoilt(rng: random.Random, given: dict[Any, Any]) -> Any:
    key = rng.choice(UNKNOWN)
    ways: list[Any] = [
        {**given, key: [1]}, {**given, f"{key}_list": [1]}, {**given, "precision_list": ["auto"]}, {},
        {**given, "batch_list": [1]}, rng.choice(NO_MAPPING),
    ]  # fmt: skip
    no_list = rng.choice(
        [5, "abc", None, [], (), range(0), {}, {"a": 1}, 2.5, "[]", list("[]"), object(), b"ab", {1}]
    )
    if given:
        ways.append({**given, next(iter(given)): no_list})
    return rng.choice(ways)


# A yml's section


def _section(rng: random.Random, method: Method) -> str:
    cls = method.detector.settings_class
    drawn = _drawn(rng, cls)
    sweep, _ = _sweep(rng, cls)
    aps_mode: Any = rng.choice([True, False, False, None, 1, "True", [], rng.random()])
    section: dict[Any, Any] = {
        "name": method.name, "APS_mode": aps_mode, "postprocessor_args": _given(drawn),
        "postprocessor_sweep": rng.choice([sweep, None, {}]),
    }  # fmt: skip
    for key in rng.sample(list(section), rng.randint(0, 2)):
        del section[key]
    if rng.random() < 0.2:
        section[rng.choice([*section, *UNKNOWN])] = rng.choice(
            [*NO_MAPPING, [], {}, {"k1_list": [1]}, Fraction(1, 3)]
        )
    try:
        found = Configuration.parse(method, section)
    except SettingError as error:
        require("expected" in str(error), f"nothing is said to be allowed: {error}")
        return "SettingError"
    require(Configuration.parse(method, found.as_section()) == found, f"{_shown(section)} does not come back")
    require(len(found.tried()) >= 1 and found.plan(), "no candidate")
    usable(found.settings)
    return "section"

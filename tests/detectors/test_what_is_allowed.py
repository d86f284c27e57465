"""Each setting's edges, the words of its error, and what it becomes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from openood_adascale.detectors.adascale import AdaSCALESettings
from openood_adascale.detectors.bfact import BFActSettings
from openood_adascale.detectors.calibration import MadeWith
from openood_adascale.detectors.lts import LTSSettings
from openood_adascale.detectors.optfs import OptFSSettings
from openood_adascale.detectors.scale import FixedPercentileSettings
from openood_adascale.detectors.search import candidates, parse_sweep, product
from openood_adascale.detectors.settings import Settings, number_within, percentile_pair, whole_number
from openood_adascale.errors import SettingError
from openood_adascale.evidence.plan import Execution, Perturbation, Plan

ANY = [True, None, "x", [1], math.nan, math.inf]
PAIR = "a pair [p_min, p_max] with 0 < p_min <= p_max < 100"
BINS_PAIR = "a pair [low, high] with 0 < low < high < 100"
PIXELS = "one of 'trivial', 'random', 'salient', 'all'"
LEARN = "one of 'train', 'val'"
HUGE = 2**63 - 1
EDGES = [
    (AdaSCALESettings, "k1", [1e-9, 100], [0, 100.001, *ANY], "a number in (0, 100]"),
    (AdaSCALESettings, "k2", [1e-9, 100], [0, 100.001, *ANY], "a number in (0, 100]"),
    (AdaSCALESettings, "lmbda", [0, 1e300], [-1e-9, *ANY], "a number in [0, inf)"),
    (AdaSCALESettings, "o", [1e-9, 1], [0, 1.001, *ANY], "a number in (0, 1]"),
    (AdaSCALESettings, "epsilon", [1e-9, 1e9], [0, -1, *ANY], "a number in (0, inf)"),
    (AdaSCALESettings, "seed", [0, HUGE], [-1, 0.5, HUGE + 1, *ANY], f"a whole number from 0 to {HUGE}"),
    (AdaSCALESettings, "num_samples", [1, None, HUGE], [0, 1.5, True, "x"], f"a whole number from 1 to {HUGE}"),
    (AdaSCALESettings, "variant", ["A", "L"], ["a", "AL", None, 1], "one of 'A', 'L'"),
    (AdaSCALESettings, "pixels", ["trivial", "random", "salient", "all"], ["some", None], PIXELS),
    (AdaSCALESettings, "percentile", [[1, 1], [0.1, 99.9]], [[0, 5], [5, 100], [9, 8], [5], 5, None], PAIR),
    (OptFSSettings, "percentile", [[0.1, 99.9]], [[0, 5], [5, 100], [8, 8], [9, 8], [5], 5], BINS_PAIR),
    (OptFSSettings, "bins", [1, 2**20], [0, 2**20 + 1, 1.5, *ANY], "a whole number from 1 to 1048576"),
    (OptFSSettings, "score", ["vanilla", "energy"], ["msp", None], "one of 'vanilla', 'energy'"),
    (OptFSSettings, "learn_from", ["train", "val"], ["test", None], LEARN),
    (BFActSettings, "learn_from", ["train", "val"], ["test", None], LEARN),
    (BFActSettings, "percentile", [1e-9, 99.99], [0, 100, *ANY], "a number in (0, 100)"),
    (BFActSettings, "order", [1, 1e9], [0.999, *ANY], "a number in [1, inf)"),
    (FixedPercentileSettings, "percentile", [1e-9, 99.99], [0, 100, *ANY], "a number in (0, 100)"),
    (LTSSettings, "percentile", [1e-9, 99.99], [0, 100, *ANY], "a number in (0, 100)"),
    (Settings, "batch", ["loader", "auto", 1, 7], [0, "x", None], "loader or auto, or a whole number from 1 on"),
    (Settings, "precision", ["float32", "bfloat16", "float16", "auto"], ["float64", 32],
     "one of 'float32', 'bfloat16', 'float16', 'auto'"),
    (Settings, "memory_format", ["auto", "contiguous", "channels_last"], ["nchw", None],
     "one of 'auto', 'contiguous', 'channels_last'"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "good", "bad", "allowed"), EDGES)
def test_edges(kind, name, good, bad, allowed):
    for value in good:
        found = getattr(kind(**{name: value}), name)
        assert (list(found) if isinstance(found, tuple) else found) == value
    for value in bad:
        with pytest.raises(SettingError) as error:
            kind(**{name: value})
        assert error.value.name == name
        assert error.value.allowed == allowed
        assert error.value.value is value or error.value.value == value


DEFAULTS = {
    AdaSCALESettings: {
        "variant": "A", "percentile": [80.0, 85.0], "k1": 1.0, "k2": 5.0, "lmbda": 10.0, "o": 0.05, "epsilon": 0.5,
        "pixels": "trivial", "num_samples": None, "seed": 0,
    },
    OptFSSettings: {"bins": 100, "percentile": [0.1, 99.9], "score": "vanilla", "learn_from": "train"},
    BFActSettings: {"percentile": 95.0, "order": 2.0, "learn_from": "train"},
    FixedPercentileSettings: {"percentile": 85.0},
    LTSSettings: {"percentile": 95.0},
    Settings: {},
}  # fmt: skip
RUN = {"precision": "float32", "memory_format": "auto", "batch": "loader"}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_in_order(kind):
    assert list(kind().as_dict().items()) == [*DEFAULTS[kind].items(), *RUN.items()]
    assert kind.names() == (*DEFAULTS[kind], *RUN)
    assert kind().execution == Execution("float32", "auto", "loader")


def test_what_images_are_asked_for():
    asked = AdaSCALESettings(percentile=[60, 85], k1=2, k2=7, pixels="salient", o=0.1, epsilon=0.3, seed=4)
    assert asked.plan() == Plan((60, 85), (2,), (7,), (Perturbation("salient", 0.1, 0.3),))
    assert AdaSCALESettings(pixels="random", seed=4).perturbation == Perturbation("random", 0.05, 0.5, 4)
    assert LTSSettings(percentile=70).plan() == Plan((70, 70))
    assert BFActSettings().plan() == OptFSSettings().plan() == Plan(activations=True)
    assert Settings().plan() == Plan()
    assert Execution() == Settings().execution
    assert Plan() == Plan(None, (), (), (), False)
    assert Perturbation("trivial", 0.1, 0.2, 5) == Perturbation("trivial", 0.1, 0.2, 0)
    assert Perturbation("all", 0.1, 0.2) == Perturbation("all", 1.0, 0.2) != Perturbation("salient", 1.0, 0.2)
    chosen = Settings(precision="bfloat16", memory_format="contiguous", batch=3)
    assert chosen.execution == Execution("bfloat16", "contiguous", 3)


def test_whose_images_are_learnt_from():
    for kind in (OptFSSettings, BFActSettings):
        assert [kind(learn_from=source).source for source in ("train", "val")] == ["train", "val"]
    assert AdaSCALESettings().source == LTSSettings().source == "val"


@pytest.mark.parametrize(
    ("given", "learnt"),
    [
        ({}, {"k1", "k2", "lmbda", "o", "epsilon", "pixels", "num_samples"}),
        ({"pixels": "all"}, {"k1", "k2", "lmbda", "epsilon", "pixels", "num_samples"}),
        ({"pixels": "random"}, {"k1", "k2", "lmbda", "o", "epsilon", "pixels", "num_samples", "seed"}),
        ({"num_samples": 3}, {"k1", "k2", "lmbda", "o", "epsilon", "pixels", "num_samples", "seed"}),
    ],
)
def test_what_the_learnt_depends_on(given, learnt):
    assert {*AdaSCALESettings(**given).learnt_with()} == {*learnt, "precision"}


def test_what_others_learn_with():
    assert {*BFActSettings().learnt_with()} == {"percentile", "learn_from", "precision"}
    assert {*OptFSSettings().learnt_with()} == {"bins", "percentile", "learn_from", "precision"}


@pytest.mark.parametrize(
    ("brackets", "low", "high"),
    [("()", False, False), ("(]", False, True), ("[)", True, False), ("[]", True, True)],
)
def test_brackets(brackets, low, high):
    for value, fine in ((1, low), (2, high), (1.5, True), (0.5, False), (2.5, False)):
        if fine:
            assert number_within("x", value, 1, 2, brackets=brackets) == value
        else:
            with pytest.raises(SettingError) as error:
                number_within("x", value, 1, 2, brackets=brackets)
            told = f"x: {value} is not allowed; expected a number in {brackets[0]}1, 2{brackets[1]}"
            assert str(error.value) == told


@pytest.mark.parametrize("value", ["1.5", 1.5, np.float32(1.5), np.float64(1.5)])
def test_numbers_of_all_kinds(value):
    found = number_within("x", value, 1, 2)
    assert (found, type(found)) == (1.5, float)


@pytest.mark.parametrize("value", ["7", 7, 7.0, "7.0", np.int8(7), np.float32(7)])
def test_whole_numbers_of_all_kinds(value):
    found = whole_number("x", value, 7, 7)
    assert (found, type(found)) == (7, int)
    with pytest.raises(SettingError, match=r"^x: .* is not allowed; expected a whole number from 8 to 9$"):
        whole_number("x", value, 8, 9)


@pytest.mark.parametrize("value", ["[5, 9]", "(5, 9)", (5, 9), [5, 9], list("[5, 9]"), ["5", "9"]])
def test_pairs_of_all_kinds(value):
    assert percentile_pair("percentile", value) == (5.0, 9.0)


def test_combinations_in_openoods_order():
    assert product({}) == [{}]
    assert product({"a": [1, 2], "b": [3, 4]}) == [
        {"a": 1, "b": 3}, {"a": 2, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 4},
    ]  # fmt: skip
    assert [one.k1 for one in candidates(AdaSCALESettings(k2=7), {"k1": [1, 2]})] == [1, 2]
    assert candidates(AdaSCALESettings(k2=7), {"k1_list": [2]})[0].k2 == 7


@pytest.mark.parametrize(
    ("sweep", "name", "allowed"),
    [
        (None, "postprocessor_sweep", "at least one list <setting>_list, or APS_mode: False"),
        ({}, "postprocessor_sweep", "at least one list <setting>_list, or APS_mode: False"),
        ([1], "postprocessor_sweep", "a section of names and values"),
        ({"k3_list": [1]}, "postprocessor_sweep: k3_list", "one of: bins_list, percentile_list, score_list"),
        (
            {"learn_from_list": ["val"]},
            "postprocessor_sweep: learn_from_list",
            "learn_from in postprocessor_args alone",
        ),
        ({"batch_list": [1]}, "postprocessor_sweep: batch_list", "batch in postprocessor_args alone"),
        ({"bins_list": []}, "postprocessor_sweep: bins_list", "a list of at least one value"),
        ({"bins_list": 3}, "postprocessor_sweep: bins_list", "a list of at least one value"),
        ({"bins_list": "3"}, "postprocessor_sweep: bins_list", "a list of at least one value"),
        ({"bins_list": np.zeros(0)}, "postprocessor_sweep: bins_list", "a list of at least one value"),
    ],
)
def test_sweeps_that_cannot_be(sweep, name, allowed):
    with pytest.raises(SettingError) as error:
        parse_sweep(OptFSSettings, sweep)
    assert (error.value.name, error.value.allowed) == (name, allowed)


@pytest.mark.parametrize("values", [[10, 20], (10, 20), range(10, 21, 10), np.array([10, 20]), "[10, 20]"])
def test_sweeps_of_all_kinds(values):
    found = parse_sweep(OptFSSettings, {"bins_list": values, "score": ["energy"]})
    assert found == {"bins": [10, 20], "score": ["energy"]}
    assert [type(value) for value in found["bins"]] == [int, int]


def test_unknown_settings_and_sections():
    with pytest.raises(SettingError) as error:
        BFActSettings.from_mapping({"k": 1}, "postprocessor_args")
    assert (error.value.name, error.value.value) == ("postprocessor_args: k", 1)
    assert error.value.allowed == "one of: percentile, order, learn_from, precision, memory_format, batch"
    assert BFActSettings.from_mapping(None) == BFActSettings()
    assert BFActSettings.from_mapping({"order": 3}, order=4, percentile=50) == BFActSettings(
        percentile=50, order=3
    )
    assert BFActSettings(order=3).replace(order=4) == BFActSettings(order=4)
    with pytest.raises(SettingError, match="order: 0 is not allowed"):
        BFActSettings().replace(order=0)


def test_doubts():
    with pytest.warns(UserWarning, match=r"^k1 = 5 is larger than k2 = 2\.5\."):
        assert AdaSCALESettings(k1=5, k2=2.5).warn_if_doubtful()
    for fine in (AdaSCALESettings(k1=5, k2=5), BFActSettings()):
        assert not fine.warn_if_doubtful()


def test_what_was_changed_since():
    """Settings that did not enter then, and those that do not now, are no change by themselves."""
    with_random = AdaSCALESettings(pixels="random", seed=3)
    made = MadeWith("digest", frozenset(), AdaSCALESettings().learnt_with())
    assert made.changed(AdaSCALESettings(percentile=[1, 2]).learnt_with()) == {}
    assert made.changed(with_random.learnt_with()) == {"pixels": "pixels is 'random' and was 'trivial'"}
    assert made.changed(AdaSCALESettings(k1=2, lmbda=3).learnt_with()) == {
        "k1": "k1 is 2.0 and was 1.0",
        "lmbda": "lmbda is 3.0 and was 10.0",
    }
    drawn = MadeWith("digest", frozenset(), with_random.learnt_with())
    assert drawn.changed(AdaSCALESettings().learnt_with()) == {
        "pixels": "pixels is 'trivial' and was 'random'"
    }
    assert {*drawn.changed(with_random.replace(seed=4).learnt_with())} == {"seed"}

"""Tests of settings and sweeps."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from networks import TinyNet

from openood_adascale import AdaSCALE
from openood_adascale.detectors.adascale import AdaSCALESettings
from openood_adascale.detectors.bfact import BFActSettings
from openood_adascale.detectors.optfs import OptFSSettings
from openood_adascale.detectors.registry import METHODS
from openood_adascale.detectors.scale import FixedPercentileSettings, LTSSettings
from openood_adascale.detectors.search import candidates, parse_sweep, product
from openood_adascale.detectors.settings import (
    INFERENCE,
    Settings,
    percentile_pair,
    warn_if_doubtful,
    whole_number,
)
from openood_adascale.errors import SettingError, key_text
from openood_adascale.features.extractor import InferenceSettings
from openood_adascale.features.statistics import FeatureRequest, Perturbation

KINDS = [AdaSCALESettings, BFActSettings, OptFSSettings, FixedPercentileSettings, LTSSettings, Settings]
NONE = [True, None, "x", [1], math.nan, math.inf]
PAIR = "a pair [p_min, p_max] with 0 < p_min <= p_max < 100"
BINS_PAIR = "a pair [p_min, p_max] with 0 < p_min < p_max < 100"
LARGEST = 2**63 - 1
EDGES = [
    (AdaSCALESettings, "k1", [1e-9, 100], [0, 100.001, *NONE], "a number in (0, 100]"),
    (AdaSCALESettings, "k2", [1e-9, 100], [0, 100.001, *NONE], "a number in (0, 100]"),
    (AdaSCALESettings, "lmbda", [0, 1e300], [-1e-9, 10**400, *NONE], "a number in [0, inf)"),
    (AdaSCALESettings, "o", [1e-9, 1], [0, 1.001, *NONE], "a number in (0, 1]"),
    (AdaSCALESettings, "epsilon", [1e-9, 1e9], [0, -1, *NONE], "a number in (0, inf)"),
    (AdaSCALESettings, "seed", [0, LARGEST], [-1, 0.5, 2**64, *NONE], f"a whole number from 0 to {LARGEST}"),
    (AdaSCALESettings, "num_samples", [1, None], [0, 1.5, True, "x"], f"a whole number from 1 to {LARGEST}"),
    (AdaSCALESettings, "variant", ["A", "L"], ["a", "AL", None, 1], "one of 'A', 'L'"),
    (AdaSCALESettings, "pixels", ["all"], ["some", None], "one of 'trivial', 'random', 'salient', 'all'"),
    (AdaSCALESettings, "percentile", [[1, 1], [0.1, 99.9]], [[0, 5], [5, 100], [9, 8], [5], 5, None, "80", ""], PAIR),
    (OptFSSettings, "percentile", [[0.1, 99.9], [5, 95]], [[0, 5], [5, 100], [8.0, 8.0], [9, 8], [5], 5], BINS_PAIR),
    (OptFSSettings, "bins", [1, 2**20], [0, 2**20 + 1, 1.5, *NONE], "a whole number from 1 to 1048576"),
    (OptFSSettings, "score", ["vanilla", "energy"], ["msp", None], "one of 'vanilla', 'energy'"),
    (OptFSSettings, "fit_split", ["train", "val"], ["test", None], "one of 'train', 'val'"),
    (BFActSettings, "fit_split", ["train", "val"], ["test", None], "one of 'train', 'val'"),
    (BFActSettings, "percentile", [1e-9, 99.99], [0, 100, *NONE], "a number in (0, 100)"),
    (BFActSettings, "order", [1, 1e9], [0.999, *NONE], "a number in [1, inf)"),
    (FixedPercentileSettings, "percentile", [1e-9, 99.99], [0, 100, *NONE], "a number in (0, 100)"),
    (LTSSettings, "percentile", [1e-9, 99.99], [0, 100, *NONE], "a number in (0, 100)"),
    (Settings, "forward_batch_size", [None, 1, 7], [0, "x", 1.5, True], f"a whole number from 1 to {LARGEST}"),
    (Settings, "precision", ["float32", "auto"], ["float64", 32], "one of 'float32', 'bfloat16', 'float16', 'auto'"),
    (Settings, "memory_format", ["auto"], ["nchw", None], "one of 'auto', 'contiguous', 'channels_last'"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "good", "bad", "allowed"), EDGES)
def test_setting_has_its_edges(kind, name, good, bad, allowed):
    for value in good:
        found = getattr(kind(**{name: value}), name)
        assert (list(found) if isinstance(found, tuple) else found) == value
    for value in bad:
        with pytest.raises(SettingError) as error:
            kind(**{name: value})
        assert (error.value.name, error.value.allowed) == (name, allowed)
        assert error.value.value is value or error.value.value == value
        assert str(error.value) == f"{name}: {value!r} is not allowed; expected {allowed}"


GOOD = {(kind, name): good for kind, name, good, *_ in EDGES}


@pytest.mark.parametrize("method", METHODS)
def test_constructor_takes_every_setting(method):
    kind = METHODS[method].detector
    defaults = kind(TinyNet()).settings
    for name in kind.settings_class.names():
        good = GOOD.get((kind.settings_class, name)) or GOOD[Settings, name]
        values = [*good, "contiguous"] if name == "memory_format" else good
        found = [kind(TinyNet(), **{name: value}).settings for value in values]
        assert found == [defaults.replace(**{name: value}) for value in values]
        assert any(settings != defaults for settings in found), name


# Anything that a YAML file, a command line or a program may hold.

scalars = st.one_of(
    st.none(), st.none().map(lambda _: 10**5000),
    st.booleans(), st.integers(), st.integers(0, 100), st.floats(), st.floats(0, 100),
    st.sampled_from([10**400, math.nan, 2**63, "1e400", "0x_", "nan", "!!int a", "2001-99-99"]),
    st.text(max_size=8), st.floats(0, 100).map(repr), st.integers(0, 100).map(str),
    st.sampled_from(["A", "L", "trivial", "random", "auto", "bfloat16", "train", "val", "energy", "contiguous"]),
    st.dates(), st.binary(max_size=4), st.floats(0, 100).map(np.float32), st.integers(0, 99).map(np.int64),
    st.sampled_from(["A", "val"]).map(np.str_),
)  # fmt: skip
pairs = st.tuples(st.floats(0, 100), st.floats(0, 100))
junk = st.one_of(
    scalars,
    st.recursive(
        scalars, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=3), one, max_size=3), max_leaves=6
    ),
    pairs.map(list), pairs, pairs.map(lambda p: f"[{p[0]}, {p[1]}]"), pairs.map(lambda p: list(f"({p[0]},{p[1]})")),
    pairs.map(np.array), st.lists(st.floats(), max_size=3).map(np.array),
)  # fmt: skip


def attempt(call):
    """Return the result of a call and None, or None and the SettingError that it raised."""
    try:
        return call(), None
    except SettingError as error:
        return None, error


def assert_usable(settings):
    """Check the methods of a settings object."""
    plain = settings.as_dict()
    for text, read in ((json.dumps(plain), json.loads), (yaml.safe_dump(plain), yaml.safe_load)):
        assert type(settings).from_mapping(read(text)) == settings
    assert hash(settings) == hash(settings.replace())
    assert settings.request().covers(settings.request())
    assert set(settings.fit_settings()) <= set(settings.names())
    assert settings.split in ("train", "val")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warn_if_doubtful([settings])


@given(st.sampled_from(KINDS), st.data())
def test_any_value_is_accepted_or_named(kind, data):
    name = data.draw(st.sampled_from(kind.names()))
    value = data.draw(junk)
    for make in (lambda: kind(**{name: value}), lambda: kind().replace(**{name: value})):
        found, error = attempt(make)
        if error is not None:
            assert error.name == name
            assert str(error).startswith(f"{name}: ")
            assert str(error).endswith(f" is not allowed; expected {error.allowed}")
            assert len(str(error)) < 1300
        else:
            assert_usable(found)
            value_type = {field.name: field.type for field in dataclasses.fields(kind)}[name]
            stored = getattr(found, name)
            assert type(stored).__name__ in value_type.replace("None", "NoneType")
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert stored == value


@given(
    st.sampled_from(KINDS),
    st.dictionaries(
        st.one_of(
            st.sampled_from(AdaSCALESettings().names()), scalars.filter(lambda x: isinstance(x, str | int))
        ),
        junk,
        max_size=3,
    ),
)
def test_any_mapping_is_accepted_or_named(kind, mapping):
    found, error = attempt(lambda: kind.from_mapping(mapping, "args"))
    if error is not None:
        named = error.name.removeprefix("args: ")
        assert named in map(key_text, mapping)
        assert (named in kind.names()) or error.allowed == "one of: " + ", ".join(kind.names())
    else:
        assert set(mapping) <= set(kind.names())
        assert_usable(found)


@given(st.sampled_from(KINDS), st.data())
def test_any_sweep_is_accepted_or_named(kind, data):
    keys = (
        st.sampled_from([f"{name}_list" for name in kind.names()])
        | st.sampled_from(kind.names())
        | st.text(max_size=4)
    )
    values = st.lists(junk, max_size=3) | junk
    sweep = data.draw(st.dictionaries(keys, values, max_size=2) | junk)
    found, error = attempt(lambda: candidates(kind(), sweep))
    if error is not None:
        place = error.name.removeprefix("postprocessor_sweep: ").removesuffix("_list")
        assert error.name == "postprocessor_sweep" or place in kind.names() or place in map(key_text, sweep)
    else:
        assert len(found) >= 1
        for settings in found:
            assert_usable(settings)
        swept = {key.removesuffix("_list") for key in sweep}
        assert not swept & {*INFERENCE, *kind.not_swept}
        assert all(settings.replace(**{n: getattr(kind(), n) for n in swept}) == kind() for settings in found)


# What is accepted, and as what.


def test_defaults_come_in_order():
    last = {"precision": "float32", "memory_format": "auto", "forward_batch_size": None}
    assert list(AdaSCALESettings().as_dict().items()) == [
        ("variant", "A"), ("percentile", [80.0, 85.0]), ("k1", 1.0), ("k2", 5.0), ("lmbda", 10.0), ("o", 0.05),
        ("epsilon", 0.5), ("pixels", "trivial"), ("num_samples", None), ("seed", 0), *last.items(),
    ]  # fmt: skip
    assert OptFSSettings().as_dict() == {
        "bins": 100, "percentile": [0.1, 99.9], "score": "vanilla", "fit_split": "train", **last,
    }  # fmt: skip
    assert BFActSettings().as_dict() == {"percentile": 95.0, "order": 2.0, "fit_split": "train", **last}
    assert FixedPercentileSettings().as_dict() == {"percentile": 85.0, **last}
    assert LTSSettings().as_dict() == {"percentile": 95.0, **last}
    chosen = Settings(precision="bfloat16", memory_format="contiguous", forward_batch_size="3")
    assert chosen.inference == InferenceSettings("bfloat16", "contiguous", 3)


@pytest.mark.parametrize(
    "value", ["[5, 9]", "(5, 9)", (5, 9), [5, 9], list("[5, 9]"), tuple("(5,9)"), ["5", "9"]]
)
def test_pair_is_read_as_command_lines_give_it(network, value):
    assert percentile_pair("percentile", value) == (5.0, 9.0)
    assert AdaSCALE(network, percentile=value).settings.percentile == (5.0, 9.0)


@pytest.mark.parametrize(
    "text",
    ["[2001-99-99]", "[!!int a]", "[!!bool a]", "[!!timestamp a]", "[0x_]", "[" * 700, "[{[1]: 2}]", "[*a]", "[&a *a]"],
)  # fmt: skip
def test_text_that_is_no_pair_is_refused(text):
    for given_text in (text, list(text), tuple(text)):
        with pytest.raises(SettingError, match="percentile: "):
            AdaSCALESettings(percentile=given_text)


def nested_lists():
    """Ten lists of ten lists of …: a few lines of YAML say it, and its repr fills the memory."""
    found = ["ha"] * 10
    for _ in range(12):
        found = [found] * 10
    return found


@pytest.mark.parametrize(
    "value",
    [nested_lists(), [10**5000], ["x"] * 10**5, "x" * 10**5, np.zeros(10**6), {"a": nested_lists()}], ids=range(6),
)  # fmt: skip
def test_huge_value_is_refused_in_few_words(value):
    for kind in KINDS:
        for name in kind.names():
            with pytest.raises(SettingError, match=f"^{name}: ") as error:
                kind(**{name: value})
            assert len(str(error.value)) < 1200


@pytest.mark.parametrize("value", ["7", 7, 7.0, "7.0", np.int8(7), np.float32(7)])
def test_whole_number_is_exact(value):
    assert (whole_number("x", value, 7, 7), type(whole_number("x", value, 7, 7))) == (7, int)
    assert AdaSCALESettings(seed="9007199254740993").seed == 2**53 + 1
    with pytest.raises(SettingError, match=r"^x: .* expected a whole number from 8 to 9$"):
        whole_number("x", value, 8, 9)


# What depends on settings.


def test_request_says_what_settings_need():
    settings = AdaSCALESettings(percentile=[60, 85], k1=2, k2=7, pixels="salient", o=0.1, epsilon=0.3, seed=4)
    assert settings.request() == FeatureRequest((60, 85), (2,), (7,), (Perturbation("salient", 0.1, 0.3),))
    assert AdaSCALESettings(pixels="random", seed=4).perturbation == Perturbation("random", 0.05, 0.5, 4)
    assert LTSSettings(percentile=70).request() == FeatureRequest((70, 70))
    assert BFActSettings().request() == OptFSSettings().request() == FeatureRequest(activations=True)
    assert Settings().request() == FeatureRequest()


def test_fit_settings_are_those_that_fitting_depends_on():
    always = {"k1", "k2", "lmbda", "o", "epsilon", "pixels", "num_samples", "seed", "precision"}
    assert set(AdaSCALESettings().fit_settings()) == always
    assert set(BFActSettings().fit_settings()) == {"percentile", "fit_split", "precision"}
    assert set(OptFSSettings().fit_settings()) == {"bins", "percentile", "fit_split", "precision"}
    assert [kind(fit_split="val").split for kind in (OptFSSettings, BFActSettings)] == ["val", "val"]


def test_exchanged_k1_and_k2_draw_a_warning():
    with pytest.warns(UserWarning, match=r"^k1 = 5 is larger than k2 = 2\.5\. .* the other way round"):
        warn_if_doubtful([AdaSCALESettings(), AdaSCALESettings(k1=5, k2=2.5), AdaSCALESettings(k1=9, k2=1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_doubtful([AdaSCALESettings(k1=5, k2=5), BFActSettings()])


def test_percentiles_that_look_like_fractions_draw_a_warning():
    with pytest.warns(
        UserWarning, match=r"percentile = \(0\.8, 0\.85\) is 0\.8 % and 0\.85 %, .* expected 80 and 85 "
    ):
        AdaSCALE(TinyNet(), percentile=(0.8, 0.85))
    with pytest.warns(UserWarning, match=r"percentile = 0\.9 is 0\.9 %, .* expected 90 "):
        warn_if_doubtful([BFActSettings(percentile=0.9)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AdaSCALE(TinyNet(), percentile=(0.8, 1.5))


# Sweeps.


def test_candidates_come_in_openood_order():
    assert product({}) == [{}]
    sweep = {"lmbda_list": [1, 10], "percentile_list": [[60, 70], [80, 85]]}
    found = [(one.lmbda, one.percentile) for one in candidates(AdaSCALESettings(k2=7), sweep)]
    assert found == [(1, (60, 70)), (10, (60, 70)), (1, (80, 85)), (10, (80, 85))]
    assert (
        candidates(AdaSCALESettings(k2=7), {"k1": [1, 2]})[1].as_dict()
        == AdaSCALESettings(k1=2, k2=7).as_dict()
    )


@pytest.mark.parametrize(
    "values", [[10, 20], (10, 20), range(10, 21, 10), np.array([10, 20]), "[10, 20]", list("[10, 20]")]
)
def test_sweep_takes_lists_of_any_kind(values):
    found = parse_sweep(OptFSSettings, {"bins_list": values, "score": ["energy"]})
    assert found == {"bins": [10, 20], "score": ["energy"]}
    assert [type(value) for value in found["bins"]] == [int, int]


@pytest.mark.parametrize(
    ("sweep", "name", "allowed"),
    [
        (None, "postprocessor_sweep", "at least one list <setting>_list, or APS_mode: False"),
        ({}, "postprocessor_sweep", "at least one list <setting>_list, or APS_mode: False"),
        ([1], "postprocessor_sweep", "a section of names and values"),
        ({"k3_list": [1]}, "postprocessor_sweep: k3_list", "one of: bins_list, percentile_list, score_list"),
        ({"fit_split_list": ["val"]}, "postprocessor_sweep: fit_split_list", "fit_split in postprocessor_args only"),
        ({"precision_list": ["auto"]}, "postprocessor_sweep: precision_list", "precision in postprocessor_args only"),
        ({"bins_list": []}, "postprocessor_sweep: bins_list", "a list of at least one value"),
        ({"bins_list": 3}, "postprocessor_sweep: bins_list", "a list of at least one value"),
        ({"bins_list": [0]}, "bins", "a whole number from 1 to 1048576"),
    ],
)  # fmt: skip
def test_bad_sweep_is_named(sweep, name, allowed):
    with pytest.raises(SettingError) as error:
        candidates(OptFSSettings(), sweep)
    assert (error.value.name, error.value.allowed) == (name, allowed)


def test_bad_sweep_is_refused_before_any_pass(network, id_images):
    for method in METHODS.values():
        detector = method.detector(network)
        more = {"fit_loader": [id_images]} if "fit_split" in detector.settings.names() else {}
        with pytest.raises(SettingError):
            detector.search([id_images], [id_images], {"k9_list": [1, 200]}, **more)
    assert not network.calls


def test_unknown_key_lists_the_known_ones():
    for key in (10**5000, None, 5, ("k1",)):  # YAML takes any key
        with pytest.raises(SettingError, match="one of: "):
            BFActSettings.from_mapping({key: 1})
        with pytest.raises(SettingError, match="one of: "):
            parse_sweep(BFActSettings, {key: [1]})
    with pytest.raises(SettingError) as error:
        BFActSettings.from_mapping({"k": 1}, "postprocessor_args")
    assert (error.value.name, error.value.value) == ("postprocessor_args: k", 1)
    assert (
        error.value.allowed
        == "one of: percentile, order, fit_split, precision, memory_format, forward_batch_size"
    )
    assert BFActSettings.from_mapping(None) == BFActSettings()
    assert BFActSettings.from_mapping({"order": 3}, order=4, percentile=50) == BFActSettings(
        percentile=50, order=3
    )

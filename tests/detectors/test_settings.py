import numpy as np
import pytest
import yaml

from openood_adascale import AdaSCALE
from openood_adascale.detectors.adascale import AdaSCALESettings
from openood_adascale.detectors.bfact import BFActSettings
from openood_adascale.detectors.optfs import OptFSSettings
from openood_adascale.detectors.scale import FixedPercentileSettings
from openood_adascale.detectors.search import candidates, parse_sweep
from openood_adascale.detectors.settings import Settings
from openood_adascale.errors import SettingError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("variant", "B"), ("pixels", "trvial"), ("percentile", (85, 80)), ("percentile", (0, 80)),
        ("percentile", (80, 100)), ("percentile", 85), ("percentile", (80,)), ("percentile", "80"),
        ("k1", 0), ("k1", 101), ("k2", -1), ("k2", "many"), ("o", 0), ("o", 1.5), ("epsilon", 0), ("epsilon", float("nan")),
        ("lmbda", -1), ("lmbda", True), ("num_samples", 0), ("num_samples", 1.5), ("seed", -1), ("k1", None),
    ],
)  # fmt: skip
def test_out_of_range_names_the_setting_and_its_value(name, value):
    with pytest.raises(SettingError) as error:
        AdaSCALESettings(**{name: value})
    assert name in str(error.value)
    assert "expected" in str(error.value)
    shown = value if not isinstance(value, tuple) else value[0]
    assert str(shown) in str(error.value)


def test_unknown_key_lists_the_known():
    with pytest.raises(SettingError, match=r"postprocessor_args: k3: .*percentile, k1, k2"):
        AdaSCALESettings.from_mapping({"k3": 1}, "postprocessor_args")


def test_what_a_yml_and_a_command_line_give():
    settings = AdaSCALESettings.from_mapping(
        {"percentile": list("[60, 85]"), "k1": 2, "epsilon": "5e-1", "lmbda": "5", "num_samples": "100"}
    )
    assert settings.percentile == (60.0, 85.0)
    assert (settings.k1, settings.epsilon, settings.lmbda, settings.num_samples) == (2.0, 0.5, 5.0, 100)
    assert AdaSCALESettings.from_mapping(settings.as_dict()) == settings


def test_candidates_come_in_openoods_order_whatever_the_sweep_names():
    sweep = {"lmbda_list": [1, 10], "percentile_list": [[60, 70], [80, 85]]}
    tried = candidates(AdaSCALESettings(), sweep)
    assert [(c.lmbda, c.percentile) for c in tried] == [
        (1, (60, 70)), (10, (60, 70)), (1, (80, 85)), (10, (80, 85)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "sweep",
    [
        None,
        {},
        {"k1_list": []},
        {"k9_list": [1]},
        {"k1_list": 3},
        {"k1_list": [0]},
        {"percentile_list": [80, 85]},
    ],
)
def test_bad_sweeps(sweep):
    with pytest.raises(SettingError):
        candidates(AdaSCALESettings(), sweep)


def test_sweep_of_scrambled_list():
    assert parse_sweep(AdaSCALESettings, {"k2_list": list("[5, 10]")}) == {"k2": [5, 10]}


def test_older_naming_draws_one_warning():
    with pytest.warns(UserWarning, match="the other way round") as caught:
        AdaSCALESettings(k1=5, k2=1).warn_if_doubtful()
    assert len(caught) == 1


def test_seeds_are_kept_to_the_last_digit():
    for seed in (2**53 + 1, 2**63 - 1, "9007199254740993", np.int64(7)):
        assert AdaSCALESettings(seed=seed).seed == int(seed)
    for seed in (2**64, 10**400, -1, 1.5, float("nan"), True, "1e400"):
        with pytest.raises(SettingError, match=r"seed: .* a whole number from 0 to 9223372036854775807"):
            AdaSCALESettings(seed=seed)
    with pytest.raises(SettingError, match="lmbda"):
        AdaSCALESettings(lmbda=10**400)
    assert AdaSCALESettings(num_samples=5e3).num_samples == 5000


def laughs():
    """What shows as a billion words; a few lines of YAML say it."""
    found = ["ha"] * 10
    for _ in range(12):
        found = [found] * 10
    return found


@pytest.mark.parametrize(
    "value",
    [
        laughs(), 10**5000, [10**5000], ["x"] * 10**5, "x" * 10**5, np.array(["auto", "loader"]), np.zeros(10**6),
        {"a": laughs()},
    ],
    ids=range(8),
)  # fmt: skip
def test_any_value_is_refused_in_a_few_words(value):
    for name in AdaSCALESettings.names():
        with pytest.raises(SettingError, match=f"^{name}: ") as error:
            AdaSCALESettings(**{name: value})
        assert len(str(error.value)) < 1200


@pytest.mark.parametrize(
    "text",
    [
        "[2001-99-99]",
        "[!!int a]",
        "[!!bool a]",
        "[!!timestamp a]",
        "[0x_]",
        "[" * 700,
        "[{[1]: 2}]",
        "[*a]",
        "[&a *a]",
    ],
)
def test_text_that_is_no_yaml_is_no_pair(text):
    for given in (text, list(text), tuple(text)):
        with pytest.raises(SettingError, match="percentile: "):
            AdaSCALESettings(percentile=given)


def test_arrays_in_a_pair():
    with pytest.raises(SettingError, match="percentile: "):
        AdaSCALESettings(percentile=[np.array([1, 2]), 3])
    assert AdaSCALESettings(percentile=tuple("[60, 85]")).percentile == (60, 85)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            AdaSCALESettings,
            {"variant": "L", "pixels": "all", "precision": "auto", "memory_format": "contiguous"},
        ),
        (OptFSSettings, {"score": "energy", "learn_from": "val", "batch": "auto"}),
        (BFActSettings, {"learn_from": "val", "batch": "auto"}),
    ],
)
def test_numpys_words_become_plain_ones(kind, words):
    found = kind(**{name: np.str_(word) for name, word in words.items()})
    assert {type(getattr(found, name)) for name in words} == {str}
    assert yaml.safe_load(yaml.safe_dump(found.as_dict())).items() >= words.items()


@pytest.mark.parametrize("number", [np.float32(1), np.int64(1), "1", 1])
def test_numpys_numbers_become_plain_ones(number):
    names = {
        "k1": float,
        "k2": float,
        "lmbda": float,
        "o": float,
        "epsilon": float,
        "seed": int,
        "num_samples": int,
    }
    found = AdaSCALESettings(**dict.fromkeys(names, number))
    assert {name: type(getattr(found, name)) for name in names} == names
    assert type(OptFSSettings(bins=number).bins) is int
    assert [
        type(one) for one in (BFActSettings(percentile=number).percentile, BFActSettings(order=number).order)
    ] == [
        float,
        float,
    ]
    assert type(FixedPercentileSettings(percentile=number).percentile) is float
    assert type(Settings(batch=number).batch) is int


@pytest.mark.parametrize("section", [0, 5, "k1", ["k1"], [("k1", 5)], ()])
def test_what_is_no_section(section):
    with pytest.raises(SettingError, match=r"args: .* a section of names and values"):
        AdaSCALESettings.from_mapping(section, "args")
    with pytest.raises(SettingError, match="postprocessor_sweep: "):
        parse_sweep(AdaSCALESettings, section)
    with pytest.raises(SettingError, match="postprocessor_sweep: 5"):
        parse_sweep(AdaSCALESettings, {5: [1]})


def test_an_empty_text_is_shown_as_it_is():
    with pytest.raises(SettingError, match="percentile: '' is not allowed"):
        AdaSCALESettings(percentile="")


@pytest.mark.parametrize(
    "given", ["(70, 95)", "[70, 95]", list("(70,95)"), list("[70,95]"), tuple("(70,95)")]
)
def test_pairs_as_openoods_command_line_hands_them_on(network, given):
    assert AdaSCALE(network, percentile=given).settings.percentile == (70, 95)


def test_what_is_wrong_is_named_whole(network):
    with pytest.raises(SettingError, match=r"^batch: 0 is not allowed"):
        AdaSCALE(network, batch=0)
    with pytest.raises(SettingError, match="expected one of 'trivial', "):
        AdaSCALE(network, pixels="few")
    with pytest.raises(
        SettingError,
        match=r"depth_list: \[1\] is not allowed; expected one of: variant_list, percentile_list, ",
    ):
        parse_sweep(AdaSCALESettings, {"depth_list": [1]})


def test_a_seed_that_is_not_used_asks_for_no_other_fit(network):
    def learnt(**settings):
        return AdaSCALE(network, **settings).settings.learnt_with()

    assert "seed" not in learnt(pixels="trivial", num_samples=None)
    assert "seed" in learnt(pixels="trivial", num_samples=10)
    assert "seed" in learnt(pixels="random", num_samples=None)

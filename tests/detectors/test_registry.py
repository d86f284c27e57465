"""The table of methods: names are those of commands, files and OpenOOD, labels the paper's."""

from __future__ import annotations

import pytest
from tiny import TinyNet, make_images

from openood_adascale.detectors.registry import METHODS

TABLE = {  # name: label, class, whether OpenOOD knows it from this package
    "msp": ("MSP", "MSP", False),
    "ebo": ("EBO", "Energy", False),
    "scale": ("SCALE", "SCALE", False),
    "lts": ("LTS", "LTS", True),
    "bfact": ("BFAct", "BFAct", True),
    "optfs": ("OptFS", "OptFS", True),
    "adascale": ("AdaSCALE-A", "AdaSCALE", True),
    "adascale_logit": ("AdaSCALE-L", "AdaSCALE", True),
}


def test_the_table():
    found = {
        name: (method.label, method.detector.__name__, method.in_openood) for name, method in METHODS.items()
    }
    assert list(found) == list(TABLE)
    assert found == TABLE
    assert all(method.name == name for name, method in METHODS.items())


@pytest.mark.parametrize("name", METHODS)
def test_made_of_a_network_alone(name):
    method = METHODS[name]
    detector = method.detector(TinyNet(), **method.defaults)
    assert getattr(detector.settings, "variant", "A") == ("L" if name == "adascale_logit" else "A")


def test_what_is_searched():
    """SCALE's as OpenOOD has it, AdaSCALE's pairs as the paper does."""
    assert METHODS["scale"].detector.default_sweep == {"percentile_list": [65, 70, 75, 80, 85, 90, 95]}
    pairs = METHODS["adascale"].detector.default_sweep["percentile_list"]
    assert {low for low, _ in pairs} == {60, 65, 70, 75, 80, 85, 90, 95}
    assert {high for _, high in pairs} == {65, 70, 75, 80, 85, 90, 95, 99}
    assert len(pairs) == 36
    assert all(low < high for low, high in pairs)


@pytest.mark.parametrize("name", METHODS)
def test_of_networks_only(name):
    with pytest.raises(TypeError, match=r"^network: str is not a torch\.nn\.Module$"):
        METHODS[name].detector("resnet50").score(make_images(2, 0))

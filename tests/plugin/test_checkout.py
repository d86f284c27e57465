"""Where OpenOOD is looked for, and what is said where it is not."""

from __future__ import annotations

import sys

import pytest

from openood_adascale.errors import SettingError
from openood_adascale.plugin import checkout
from openood_adascale.plugin.checkout import evaluation_api


@pytest.fixture(autouse=True)
def _not_imported(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "openood"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(checkout, "find_spec", lambda name: None)
    monkeypatch.delenv("OPENOOD_ROOT", raising=False)


def test_it_is_nowhere():
    told = (
        r"OPENOOD_ROOT: None .*import openood.*openood:knn needs OpenOOD: have OPENOOD_ROOT name a checkout"
    )
    with pytest.raises(SettingError, match=told):
        evaluation_api("openood:knn")


def test_the_root_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENOOD_ROOT", str(tmp_path))
    before = list(sys.path)
    with pytest.raises(SettingError, match=r"OPENOOD_ROOT: .*a checkout of OpenOOD, which openood:knn needs"):
        evaluation_api("openood:knn")
    assert sys.path == before


def test_this_package_is_not_to_take_part(monkeypatch):
    monkeypatch.setenv("OPENOOD_ADASCALE_DISABLE", "register")
    with pytest.raises(SettingError, match=r"OPENOOD_ADASCALE_DISABLE: 'register' .*beside openood:knn"):
        evaluation_api("openood:knn")

"""The names in OpenOOD follow from the registry and the packaged yml files."""

from __future__ import annotations

import pytest

from openood_adascale.detectors.registry import METHODS, Method
from openood_adascale.plugin import names


def test_every_method_and_every_packaged_yml_has_a_name() -> None:
    found = names.postprocessor_methods()
    packaged = {path.stem for path in (names.configs_root() / "postprocessors").glob("*.yml")}
    assert {name for name, method in METHODS.items() if method.in_openood} | packaged == set(found)
    assert "msp" not in found
    assert found["adascale_logit_resnet50"].name == "adascale_logit"
    assert found["adascale_resnet50"].name == "adascale"
    assert names.packaged_yml("adascale_joint") is not None
    assert names.packaged_yml("msp") is None


def test_a_preset_belongs_to_the_longest_method(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    folder = tmp_path / "postprocessors"
    folder.mkdir()
    for name in ("lts_a_b", "lts_a", "ltsa", "other_lts"):
        (folder / f"{name}.yml").touch()
    monkeypatch.setattr(names, "configs_root", lambda: tmp_path)
    longer = Method("lts_a", "LTS-A", "lts:LTS")
    monkeypatch.setattr(names, "METHODS", {"lts": METHODS["lts"], "lts_a": longer})
    assert names.postprocessor_methods() == {"lts": METHODS["lts"], "lts_a": longer, "lts_a_b": longer}

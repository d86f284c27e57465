"""Reading YAML files, without OpenOOD."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from openood_adascale.detectors.registry import METHODS, Method
from openood_adascale.errors import SettingError
from openood_adascale.plugin import config
from openood_adascale.plugin.config import (
    Configuration,
    default_section,
    postprocessor_methods,
    present_section,
)
from openood_adascale.plugin.import_hook import configs_root, packaged_yaml


@pytest.mark.parametrize("name", sorted(postprocessor_methods()))
def test_packaged_yamls_are_read_and_come_back(name: str) -> None:
    path, method = packaged_yaml(name), postprocessor_methods()[name]
    assert path is not None
    section = yaml.safe_load(path.read_text(encoding="utf-8"))["postprocessor"]
    assert section["name"] == name
    found = Configuration.parse(method, section)
    assert Configuration.parse(method, found.as_section()) == found
    assert found.aps_mode == section["APS_mode"]
    assert all(getattr(found.settings, key) == value for key, value in method.defaults.items())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_default_section_is_the_detectors_defaults_and_sweep(method) -> None:
    found = Configuration.parse(method, default_section(method))
    assert found.settings == dataclasses.replace(method.detector.settings_class(), **method.defaults)
    assert found.aps_mode == bool(method.detector.default_sweep)
    assert found.sweep == {**method.detector.default_sweep}


def test_overrides_win_over_the_yaml_file() -> None:
    section = {"postprocessor_args": {"precision": "float32", "percentile": 90}}
    found = Configuration.parse(METHODS["lts"], section, {"precision": "bfloat16"})
    assert (found.settings.precision, found.settings.as_dict()["percentile"]) == ("bfloat16", 90)
    with pytest.raises(SettingError, match="precision: 'bf16'"):
        Configuration.parse(METHODS["lts"], section, {"precision": "bf16"})


@pytest.mark.parametrize("wrong", [0, 5, "k1", ["k1"], True])
def test_invalid_section_is_refused(wrong) -> None:
    with pytest.raises(SettingError, match="postprocessor_args: "):
        Configuration.parse(METHODS["lts"], {"postprocessor_args": wrong})
    with pytest.raises(SettingError, match="postprocessor: "):
        Configuration.parse(METHODS["lts"], wrong)
    with pytest.raises(SettingError, match="postprocessor_sweep: "):
        Configuration.parse(METHODS["lts"], {"APS_mode": True, "postprocessor_sweep": wrong})


@pytest.mark.parametrize("content", [b"a: [", b"\xff", b"postprocessor: !!int a", b"- 2001-99-99"])
def test_unreadable_yaml_is_refused(tmp_path, content) -> None:
    place = tmp_path / "postprocessors" / "lts.yml"
    place.parent.mkdir()
    place.write_bytes(content)
    with pytest.raises(SettingError, match=r"lts\.yml.*a readable YAML file"):
        present_section(str(tmp_path), "lts", METHODS["lts"])


def test_names_follow_from_the_registry_and_the_packaged_files(monkeypatch, tmp_path) -> None:
    found = postprocessor_methods()
    packaged = {path.stem for path in (configs_root() / "postprocessors").glob("*.yml")}
    assert {*METHODS} - {"msp", "ebo", "scale"} | packaged == set(found)
    assert found["adascale_logit_resnet50"].name == "adascale_logit"
    assert found["adascale_resnet50"].name == "adascale"
    (tmp_path / "postprocessors").mkdir()
    for name in ("lts_a_b", "lts_a", "ltsa", "other_lts"):
        (tmp_path / "postprocessors" / f"{name}.yml").touch()
    longer = Method("lts_a", "LTS-A", METHODS["lts"].detector)
    monkeypatch.setattr(config, "configs_root", lambda: tmp_path)
    monkeypatch.setattr(config, "METHODS", {"lts": METHODS["lts"], "lts_a": longer})
    assert postprocessor_methods() == {"lts": METHODS["lts"], "lts_a": longer, "lts_a_b": longer}

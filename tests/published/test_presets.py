"""The presets: every packaged yml has the numbers of the paper's tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from openood_adascale.detectors.adascale import AdaSCALESettings
from openood_adascale.published import hyperparameters, presets

CONFIGS = Path(__file__).parents[2] / "configs" / "postprocessors"
METHODS = {"adascale", "adascale_logit", "adascale_joint", "adascale_logit_joint", "optfs", "lts", "bfact"}


def test_presets_have_names_of_their_own_and_a_file_each():
    names = presets()["name"]
    assert names.is_unique
    assert len(names) == len(hyperparameters()) == 24
    assert {"adascale_resnet50", "adascale_logit_regnet_y_16gf", "adascale_cifar10_wrn_28_10"} < set(names)
    assert {path.stem for path in CONFIGS.glob("*.yml")} == set(names) | METHODS


@pytest.mark.parametrize("row", presets().to_dict("records"), ids=lambda row: row["name"])
def test_preset_file_has_the_numbers_of_the_table(row):
    text = (CONFIGS / f"{row['name']}.yml").read_text(encoding="utf-8")
    found = yaml.safe_load(text)["postprocessor"]
    assert found["name"] == row["name"]
    assert found["APS_mode"] is False
    assert "postprocessor_sweep" not in found
    made = AdaSCALESettings.from_mapping(found["postprocessor_args"])
    assert made.percentile == (row["p_min"], row["p_max"])
    assert (made.lmbda, made.k1, made.k2) == (row["lambda"], row["k1_percent"], row["k2_percent"])
    assert (made.o, made.epsilon, made.pixels) == (row["o"], row["epsilon"], "trivial")
    assert f"{row['source']} of" in text
    assert row["network"] in text

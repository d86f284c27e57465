"""Leaderboard entries as OpenOOD asks for them."""

from __future__ import annotations

import csv
import json

from report_files import CIFAR10, RESNET50, report, save_table

from openood_adascale.reporting.leaderboard import FIELDS


def test_leaderboard(tmp_path):
    folder = tmp_path / CIFAR10
    source = save_table(folder / "ood" / "adascale.csv", 77.28, 0.29)
    assert report(folder, "--description", "100 epochs; mine", "--outlier-data", "Yes") == 0
    out = folder / "report" / "leaderboard"
    expected = {
        "Training": "CrossEntropy",
        "Postprocessor": "AdaSCALE-A",
        "Near-OOD_AUROC": "77.28 ± 0.29",
        "Far-OOD_AUROC": "77.28 ± 0.29",
        "ID_Accuracy": "76.19 ± 0.29",
        "Outlier_Data": "Yes",
        "Arch": "ResNet18",
        "Additional_Description": "100 epochs; mine",
    }
    assert json.loads((out / "cifar10.json").read_text(encoding="utf-8")) == [expected]
    with (out / "cifar10.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row == expected
    assert list(row) == list(FIELDS)
    assert (out / "ood" / "AdaSCALE-A.csv").read_bytes() == source.read_bytes()


def test_leaderboard_names_benchmarks_as_openood_does(tmp_path):
    for folder, name in (
        (RESNET50, "imagenet1k_fsood"),
        ("imagenet200_resnet18_224x224_base_e90_lr0.1_default", "imagenet200_fsood"),
        ("somewhere", "results_fsood"),
    ):
        save_table(tmp_path / folder / "fsood" / "msp.csv", 70)
        assert report(tmp_path / folder) == 0
        assert (tmp_path / folder / "report" / "leaderboard" / f"{name}.csv").is_file()

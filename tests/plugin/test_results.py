"""Evaluations of OpenOOD's Evaluator as a folder that the report reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openood_adascale.evaluation.per_image import PerImage
from openood_adascale.evaluation.result import Result
from openood_adascale.plugin.results import Evaluation, save_runs
from openood_adascale.report.importers import load
from openood_adascale.report.tables import table_of

METRICS = {"FPR@95": 40.0, "AUROC": 80.0, "AUPR_IN": 70.0, "AUPR_OUT": 60.0}


def evaluation(
    name: str, labels: tuple[int, ...] = (0, 1), scheme: str = "ood", auroc: float = 80.0
) -> Evaluation:
    table = table_of({"tin": {**METRICS, "AUROC": auroc}}, ["tin"], []).assign(ACC=90.0)
    images = {key: PerImage(np.array(labels), np.array(labels)) for key in ("id", "tin")}
    scores = {"id": np.arange(len(labels)) + 1.0, "tin": -np.arange(len(labels))}
    return Evaluation(name, "cifar10", {}, Result(table, scores, near=("tin",), scheme=scheme, images=images))


def names(folder: Path) -> list[list[str]]:
    return [[method.name for method in run.methods] for run in load(folder)]


def test_save_runs_keeps_earlier_methods_on_the_same_images(tmp_path):
    save_runs({"msp": [evaluation("msp")], "knn": [evaluation("knn")]}, tmp_path)
    save_runs({"msp": [evaluation("msp", auroc=85.0)], "adascale": [evaluation("adascale")]}, tmp_path)
    (run,) = load(tmp_path)
    assert {one.name: one.value("tin", "AUROC")[0] for one in run.methods} == {
        "knn": 80,
        "msp": 85,
        "adascale": 80,
    }
    assert all(run.values(one) for one in run.methods)
    assert not any("Left out" in note for note in run.notes)


def test_save_runs_on_other_images_replaces_the_earlier_run(tmp_path):
    save_runs({"msp": [evaluation("msp")]}, tmp_path)
    save_runs({"knn": [evaluation("knn", (1, 0))]}, tmp_path)
    assert names(tmp_path) == [["knn"]]
    assert (tmp_path / "ood/msp.csv").exists()


def test_save_runs_keeps_both_schemes(tmp_path):
    save_runs({"msp": [evaluation("msp")]}, tmp_path)
    paths = save_runs({"knn": [evaluation("knn", scheme="fsood")]}, tmp_path)
    assert paths == [tmp_path / "run_fsood.json"]
    assert names(tmp_path) == [["msp"], ["knn"]]


def test_save_runs_of_several_training_runs_writes_mean_and_std(tmp_path):
    save_runs({"msp": [evaluation("msp", auroc=auroc) for auroc in (80.0, 84.0)]}, tmp_path)
    (run,) = load(tmp_path)
    assert run.methods[0].value("tin", "AUROC") == pytest.approx((82, 2))


def test_save_runs_keeps_the_tables_of_the_script(tmp_path):
    (tmp_path / "ood").mkdir()
    text = ",FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC\n" + "".join(
        f"{row},40.00 ± 0.00,80.00 ± 0.00,70.00 ± 0.00,60.00 ± 0.00,90.00 ± 0.00\n"
        for row in ("tin", "nearood")
    )
    (tmp_path / "ood/msp.csv").write_text(text, encoding="utf-8")
    save_runs({"msp": [evaluation("msp")]}, tmp_path, save_tables=False)
    assert (tmp_path / "ood/msp.csv").read_text(encoding="utf-8") == text
    assert names(tmp_path) == [["msp"]]

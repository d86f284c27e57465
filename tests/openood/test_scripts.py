"""OpenOOD's own scripts, untouched, with this package installed."""

from __future__ import annotations

import csv
import pickle
import re
import subprocess

import numpy as np
import pandas as pd
import pytest

ROWS = ["cifar100", "tin", "nearood", "mnist", "svhn", "texture", "places365", "farood"]
HEADER = ["FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]


@pytest.fixture(autouse=True)
def _checkout_stays_clean(checkout):
    yield
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert status.stdout == ""
    assert not (checkout / "configs/postprocessors/adascale.yml").exists()


def numbers(path) -> np.ndarray:
    table = pd.read_csv(path, index_col=0)
    assert list(table.columns) == HEADER
    assert list(table.index) == ROWS
    return table.map(lambda cell: float(str(cell).split(" ± ")[0])).to_numpy()


@pytest.mark.parametrize("run_root", [("s0",)], indirect=True)
def test_eval_ood_twice(run_script, run_root):
    """Search, tables, scores and a pickle; the second run takes the pickle up and gives the same."""
    args = ["scripts/eval_ood.py", "--root", run_root, "--postprocessor", "adascale"]
    first = run_script([*args, "--save-csv", "--save-score"], env={"OPENOOD_ADASCALE_WORKERS": ""})
    assert "Starting automatic parameter search" in first.stdout
    assert first.stdout.count("Hyperparam: ") == 36
    table = numbers(run_root / "ood/adascale.csv")
    assert re.search(r"\d ± \d", (run_root / "ood/adascale.csv").read_text())
    assert table[:, 1].min() > 50
    for run in ("s0",):
        assert (run_root / run / "postprocessors/adascale.pkl").stat().st_size < 20_000
        with open(run_root / run / "scores/adascale.pkl", "rb") as f:
            scores = pickle.load(f)
        assert np.isfinite(scores["id"]["test"][1]).all()
        (run_root / run / "scores/adascale.pkl").unlink()

    # By the runner, where torch loads no plugins by itself.
    second = run_script(
        ["-m", "openood_adascale", "run", *args, "--save-csv"], env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    )
    assert "Starting automatic parameter search" not in second.stdout
    assert "out of date" not in second.stderr
    np.testing.assert_allclose(numbers(run_root / "ood/adascale.csv"), table, atol=0.011)


@pytest.mark.parametrize("run_root", [("s0",)], indirect=True)
def test_eval_ood_fsood_with_a_yml_of_the_users(run_script, run_root, checkout):
    yml = checkout / "configs/postprocessors/adascale_logit.yml"
    yml.write_text(
        "postprocessor:\n  name: adascale_logit\n  APS_mode: False\n  postprocessor_args:\n    percentile: [70, 90]\n"
    )
    try:
        args = [
            "scripts/eval_ood.py",
            "--root",
            run_root,
            "--postprocessor",
            "adascale_logit",
            "--fsood",
            "--save-csv",
        ]
        done = run_script(args)
        assert "parameter search" not in done.stdout
        numbers(run_root / "fsood/adascale_logit.csv")
    finally:
        yml.unlink()


@pytest.mark.parametrize("run_root", [("s0",)], indirect=True)
def test_switched_off(run_script, run_root):
    args = ["scripts/eval_ood.py", "--root", run_root, "--postprocessor", "msp"]
    done = run_script(args, env={"OPENOOD_ADASCALE_DISABLE": "1"}, check=False)
    assert (
        "openood-adascale" not in done.stderr
    )  # and OpenOOD succeeds or fails as it does without this package


def test_eval_ood_imagenet(run_script, imagenet_checkpoint):
    run_script(
        ["scripts/eval_ood_imagenet.py", "--ckpt-path", imagenet_checkpoint, "--postprocessor", "adascale", "--save-csv",
         "--batch-size", "8"]
    )  # fmt: skip
    table = pd.read_csv(imagenet_checkpoint.parent / "ood/adascale.csv", index_col=0)
    assert list(table.columns) == HEADER
    assert list(table.index) == [
        "ssb_hard",
        "ninco",
        "nearood",
        "inaturalist",
        "textures",
        "openimage_o",
        "farood",
    ]
    assert (imagenet_checkpoint.parent / "postprocessors/adascale.pkl").is_file()


def test_main_py(run_script, main_args, checkout):
    configs = run_script(["-m", "openood_adascale", "configs"]).stdout.splitlines()
    yml = next(line for line in configs if line.endswith("/adascale.yml"))
    overrides = [
        "--postprocessor.postprocessor_args.lmbda",
        "5",
        "--postprocessor.postprocessor_args.k2",
        "7.5",
    ]
    done = run_script(main_args(yml, *overrides, mark="adascale"))
    # [percentile], with the command line's k2 and lmbda in what main.py keeps of its config
    assert done.stdout.count("Hyperparam:") == 36
    (kept,) = checkout.glob("results/*_adascale/s0/ood/config.yml")
    assert re.search(r"lmbda: 5\.0", kept.read_text())
    assert re.search(r"k2: 7\.5", kept.read_text())
    (table,) = checkout.glob("results/*_adascale/s0/ood/ood.csv")
    rows = list(csv.DictReader(table.open()))
    # main.py averages over its own list of sets
    assert {"nearood", "farood"} <= {row["dataset"] for row in rows}
    assert all(0 <= float(row["AUROC"]) <= 100 for row in rows)


def test_main_py_without_search_takes_the_command_lines_numbers(run_script, main_args):
    configs = run_script(["-m", "openood_adascale", "configs"]).stdout.splitlines()
    yml = next(line for line in configs if line.endswith("/adascale_logit.yml"))
    args = "--postprocessor.postprocessor_args."
    overrides = ["--postprocessor.APS_mode", "False", f"{args}percentile", "[70, 90]", f"{args}o", "7"]
    failed = run_script(main_args(yml, *overrides, mark="off"), check=False)
    assert failed.returncode != 0
    assert "o: 7.0 is not allowed; expected a number in (0, 1]" in failed.stderr
    done = run_script(main_args(yml, *overrides[:-1], "0.1", mark="off"))
    assert "parameter search" not in done.stdout

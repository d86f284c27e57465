"""OpenOOD's own scripts, untouched, with this package installed: one postprocessor, or many in one process."""

from __future__ import annotations

import argparse
import csv
import pickle
import re
import shutil
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


COUNTING = """
import runpy, sys
from torch import nn
inner_convolution = nn.Conv2d.forward
nn.convolved = []
def convolution(layer, images):
    if layer.in_channels == 3:
        nn.convolved.append(len(images))
    return inner_convolution(layer, images)
nn.Conv2d.forward = convolution
sys.argv = sys.argv[1:]
sys.path[0] = "scripts"
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("IMAGES", sum(nn.convolved))
"""


@pytest.mark.parametrize("run_root", [("s0",)], indirect=True)
def test_a_cache_directory_serves_later_runs(run_script, run_root, tmp_path):
    """adascale, then adascale_logit with its search, then a baseline, each in a process of its own."""
    script = tmp_path / "counting.py"
    script.write_text(COUNTING)
    env = {"OPENOOD_ADASCALE_CACHE_DIR": str(tmp_path / "cache")}

    def run(name):
        args = [script, "scripts/eval_ood.py", "--root", run_root, "--postprocessor", name, "--save-csv"]
        done = run_script(args, env=env)
        return int(re.search(r"^IMAGES (\d+)$", done.stdout, re.M)[1])

    assert run("adascale") > 500
    assert run("adascale_logit") == 0
    assert run("msp") <= 16  # two images, to look at the network


@pytest.mark.parametrize("run_root", [("s0",)], indirect=True)
def test_many_postprocessors_in_one_run(run_script, run_root):
    names = ["msp", "react", "nonsense", "adascale_logit", "rankfeat"]
    args = ["-m", "openood_adascale", "run", "--postprocessors", ",".join(names), "scripts/eval_ood.py"]
    done = run_script([*args, "--root", run_root, "--save-csv", "--save-score"], check=False)
    assert done.returncode == 1
    for name in names:
        assert f"openood-adascale: {name} ({names.index(name) + 1} of 5)" in done.stderr
        there = name != "nonsense"
        assert (run_root / f"ood/{name}.csv").exists() == there
        assert (run_root / f"s0/scores/{name}.pkl").exists() == there
    assert (run_root / "s0/postprocessors/react.pkl").exists()
    told = re.findall("openood-adascale: ([a-z_]+): runs on the images", done.stderr)
    assert {*told} == {"nonsense", "rankfeat"}
    summary = done.stdout[done.stdout.rindex("near FPR@95") :].splitlines()
    rows = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in summary[1:5]}
    assert sorted(rows) == sorted({*names} - {"nonsense"})
    assert [row[1] for row in rows.values()] == sorted((row[1] for row in rows.values()), reverse=True)
    for name, row in rows.items():
        table = numbers(run_root / f"ood/{name}.csv")
        assert row[:2] == list(table[ROWS.index("nearood"), :2])
    assert summary[-1].startswith("nonsense: failed: ")
    # By itself each gives the same.
    shutil.rmtree(run_root / "s0/postprocessors")
    shutil.rmtree(run_root / "s0/scores")
    before = (run_root / "ood/react.csv").read_text()
    run_script(["scripts/eval_ood.py", "--root", run_root, "--postprocessor", "react", "--save-csv"])
    assert (run_root / "ood/react.csv").read_text() == before


WITHOUT_OPENOOD = """
import sys
from pathlib import Path
found = [path for path in sys.path[1:] if path and not (Path(path) / "openood" / "evaluation_api").is_dir()]
sys.path[:] = [str(Path(sys.executable).parent), *found]
from openood_adascale.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("run_root", [("s0",)], indirect=True)
def test_only_the_script_need_find_openood(run_script, run_root):
    """As the installed command finds it, in a checkout that is on no path."""
    options = ["run", "--postprocessors", "msp", "scripts/eval_ood.py", "--root", run_root]
    done = run_script(["-c", WITHOUT_OPENOOD, *options])
    assert re.search(r"^msp( +[0-9.]+){6}$", done.stdout, re.M)


def test_what_the_command_refuses(checkout, monkeypatch):
    from openood_adascale.cli import run
    from openood_adascale.errors import CacheError, SettingError

    monkeypatch.chdir(checkout)

    def call(*arguments):
        parser = argparse.ArgumentParser()
        run.add_arguments(parser)
        run.execute(parser.parse_args([*arguments]))

    with pytest.raises(SettingError, match=r"script: 'nowhere.py' .* that exists"):
        call("nowhere.py")
    with pytest.raises(SettingError, match="--postprocessor: '--postprocessor' is not allowed"):
        call("--postprocessors", "msp", "scripts/eval_ood.py", "--postprocessor", "knn")
    with pytest.raises(SettingError, match="separated by commas"):
        call("--postprocessors", " , ", "scripts/eval_ood.py")
    with pytest.raises(CacheError, match="not a feature cache"):
        call("--cache-dir", "scripts", "scripts/eval_ood.py", "--root", "x")
    monkeypatch.setenv("OPENOOD_ADASCALE_DISABLE", "register")
    with pytest.raises(SettingError, match="OPENOOD_ADASCALE_DISABLE"):
        call("--postprocessors", "msp", "scripts/eval_ood.py")

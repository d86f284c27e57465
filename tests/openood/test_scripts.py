"""OpenOOD's own scripts, untouched, with this package installed: one postprocessor, or many in one process."""

from __future__ import annotations

import argparse
import csv
import os
import pickle
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from openood_adascale.metrics import fpr95_auroc
from openood_adascale.report.importers import load

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


def assert_scores_give_the_tables(run) -> None:
    """Compare FPR@95 and AUROC of the saved scores with OpenOOD's tables of two decimals."""
    for method in run.methods:
        scores = run.values(method)
        for name in run.sets:
            found = fpr95_auroc(scores["id"], scores[name])
            np.testing.assert_allclose(found, method.table.loc[name, HEADER[:2]].astype(float), atol=0.0051)


def test_eval_ood_takes_its_pickle_up_in_the_second_run(run_script, run_root):
    """Search, tables, scores and a pickle; the second run takes the pickle up and gives the same."""
    args = ["scripts/eval_ood.py", "--root", run_root, "--postprocessor", "adascale"]
    first = run_script([*args, "--save-csv", "--save-score"], env={"OPENOOD_ADASCALE_WORKERS": ""})
    assert "Starting automatic parameter search" in first.stdout
    assert first.stdout.count("Hyperparam: ") == 36
    table = numbers(run_root / "ood/adascale.csv")
    assert re.search(r"\d ± \d", (run_root / "ood/adascale.csv").read_text())
    assert table[:, 1].min() > 50
    assert (run_root / "s0/postprocessors/adascale.pkl").stat().st_size < 20_000
    with open(run_root / "s0/scores/adascale.pkl", "rb") as f:
        scores = pickle.load(f)
    assert np.isfinite(scores["id"]["test"][1]).all()
    (run_root / "s0/scores/adascale.pkl").unlink()

    # By the runner, where torch loads no plugins by itself.
    second = run_script(
        ["-m", "openood_adascale", "run", *args, "--save-csv"], env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    )
    assert "Starting automatic parameter search" not in second.stdout
    assert "out of date" not in second.stderr
    np.testing.assert_allclose(numbers(run_root / "ood/adascale.csv"), table, atol=0.011)


def test_eval_ood_fsood_uses_the_users_yaml_file(run_script, run_root, checkout):
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


def test_eval_ood_imagenet_writes_its_table(run_script, imagenet_checkpoint):
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


def test_run_saves_shuffled_images_in_the_order_of_the_dataset(run_script, imagenet_checkpoint):
    """A run per call, as eval_ood_imagenet.py shuffles its loaders with another seed each time."""
    for name in ("msp", "adascale"):
        run_script(
            ["-m", "openood_adascale", "run", "scripts/eval_ood_imagenet.py", "--ckpt-path", imagenet_checkpoint,
             "--postprocessor", name, "--batch-size", "8"]
        )  # fmt: skip
    (run,) = load(imagenet_checkpoint.parent)
    assert [method.name for method in run.methods] == ["msp", "adascale"]
    assert (run.id, run.near, run.far) == (
        "imagenet",
        ("ssb_hard", "ninco"),
        ("inaturalist", "textures", "openimage_o"),
    )
    assert_scores_give_the_tables(run)
    own = run.images[run.images["set"] == "id"]
    folder = imagenet_checkpoint.parents[2] / "data"
    lines = (folder / "benchmark_imglist/imagenet/test_imagenet.txt").read_text().splitlines()
    listed = [line.split(" ", 1) for line in lines]
    assert [path.endswith(name) for path, (name, _) in zip(own["path"], listed, strict=True)] == [True] * len(
        own
    )
    assert own["label"].tolist() == [int(label) for _, label in listed]
    assert own["label"].nunique() > 1
    (imagenet_checkpoint.parent / "run.json").write_text("{}")
    done = run_script(
        ["-m", "openood_adascale", "run", "scripts/eval_ood_imagenet.py", "--ckpt-path", imagenet_checkpoint,
         "--postprocessor", "msp", "--batch-size", "8"],
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "expected a folder for the results" in done.stderr
    assert "Traceback" not in done.stderr
    assert own["percentile_adascale"].between(0, 100).all()


def test_main_py_searches_and_keeps_overrides(run_script, main_args, checkout, packaged):
    overrides = [
        "--postprocessor.postprocessor_args.lmbda",
        "5",
        "--postprocessor.postprocessor_args.k2",
        "7.5",
    ]
    done = run_script(main_args(packaged / "adascale.yml", *overrides, mark="adascale"))
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


def test_main_py_refuses_a_value_that_is_not_allowed(run_script, main_args, packaged):
    args = "--postprocessor.postprocessor_args."
    overrides = ["--postprocessor.APS_mode", "False", f"{args}percentile", "[70, 90]", f"{args}o", "7"]
    failed = run_script(main_args(packaged / "adascale_logit.yml", *overrides, mark="off"), check=False)
    assert failed.returncode != 0
    assert "o: 7.0 is not allowed; expected a number in (0, 1]" in failed.stderr


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


WITHOUT_OPENOOD = """
import sys
from pathlib import Path
found = [path for path in sys.path[1:] if path and not (Path(path) / "openood" / "evaluation_api").is_dir()]
sys.path[:] = [str(Path(sys.executable).parent), *found]
from openood_adascale.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_run_of_many_postprocessors_writes_files_and_a_table(run_script, run_root):
    """Of a checkout that is on no path, as the installed command finds it."""
    names = ["msp", "react", "nonsense", "adascale_logit", "rankfeat"]
    args = ["-c", WITHOUT_OPENOOD, "run", "--postprocessors", ",".join(names), "scripts/eval_ood.py"]
    done = run_script([*args, "--root", run_root, "--save-csv", "--save-score"], check=False)
    assert done.returncode == 1
    for name in names:
        assert f"openood-adascale: {name} ({names.index(name) + 1} of 5)" in done.stderr
        there = name != "nonsense"
        assert (run_root / f"ood/{name}.csv").exists() == there
        assert (run_root / f"s0/scores/{name}.pkl").exists() == there
    assert (run_root / "s0/postprocessors/react.pkl").exists()
    told = re.findall("openood-adascale: ([a-z_]+): runs on the images", done.stderr)
    assert {*told} == {"rankfeat"}
    summary = done.stdout[done.stdout.rindex("near FPR@95") :].splitlines()
    rows = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in summary[1:5]}
    assert sorted(rows) == sorted({*names} - {"nonsense"})
    assert [row[1] for row in rows.values()] == sorted((row[1] for row in rows.values()), reverse=True)
    for name, row in rows.items():
        table = numbers(run_root / f"ood/{name}.csv")
        assert row[:2] == list(table[ROWS.index("nearood"), :2])
    assert any(line.startswith("nonsense: failed: ") for line in summary)
    (run,) = load(run_root)
    assert [method.name for method in run.methods] == [name for name in names if name != "nonsense"]
    assert (run.id, run.scheme) == ("cifar10", "ood")
    assert_scores_give_the_tables(run)
    assert "± 0.00" in (run_root / "ood/msp.csv").read_text()  # as the script wrote it
    assert run.images["path"].map(os.path.isfile).all()
    assert {"percentile_adascale_logit", "oodness_adascale_logit"} <= {*run.images}


WAY = """
import sys
files = set()

def seen(frame, event, argument):
    code = frame.f_code
    of_a_module = code.co_name.startswith("<") and frame.f_back is not None and frame.f_back.f_code.co_name == "<module>"
    if event == "call" and "openood_adascale" in code.co_filename and code.co_name != "<module>" and not of_a_module:
        if code.co_flags & inspect.CO_NEWLOCALS:  # no class
            files.add(code.co_filename)

import inspect, pickle
sys.setprofile(seen)
import torch
import openood_support
from openood.evaluation_api import Evaluator
torch.manual_seed(0)
net = openood_support.SmallNet().eval()
data_root, config_root, table = sys.argv[1:]
evaluator = Evaluator(net, "cifar10", data_root, config_root, postprocessor_name="adascale", num_workers=0)
evaluator.eval_ood(progress=False).to_csv(table)
pickle.dumps(evaluator.postprocessor)
sys.setprofile(None)
import openood_adascale
root = openood_adascale.__path__[0]
print(*sorted("FILE " + name for name in files if name.startswith((root, root + "_autoload.py"))), sep="\\n")
"""


def test_way_from_import_torch_to_the_csv_goes_through_few_files(run_script, evaluator_kwargs, tmp_path):
    """Functions of so many files are called; the version before this layout went through 49."""
    (tmp_path / "way.py").write_text(WAY)
    tests = str(Path(__file__).parents[1])
    done = run_script(
        [
            tmp_path / "way.py",
            evaluator_kwargs["data_root"],
            evaluator_kwargs["config_root"],
            tmp_path / "ood.csv",
        ],
        env={
            "PYTHONPATH": os.pathsep.join([tests, os.environ["PYTHONPATH"]]),
            "OPENOOD_ADASCALE_WORKERS": "",
        },
    )
    files = [line for line in done.stdout.splitlines() if line.startswith("FILE ")]
    assert 10 < len(files) <= 25, "\n".join(files)


def test_run_refuses_invalid_arguments(checkout, monkeypatch):
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

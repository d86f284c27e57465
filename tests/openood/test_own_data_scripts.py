"""Data sets of one's own in the real OpenOOD's scripts."""

from __future__ import annotations

import os
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
from openood_postprocessing import SmallNet
from own_data import write_yml as write_description

VARIABLE = "OPENOOD_ADASCALE_DATASETS"


pytestmark = pytest.mark.usefixtures("_undone")


def table(path):
    return pd.read_csv(path, index_col=0).map(lambda cell: float(str(cell).split(" ± ")[0]))


@pytest.mark.parametrize("run_root", [("s0",)], indirect=True)
def test_eval_ood(run_script, run_root, description, tmp_path):
    """By the runner, and the script by itself for OpenOOD's own data set."""
    env = {VARIABLE: str(write_description(tmp_path / "mine.yml", description))}
    runner = ["-m", "openood_adascale", "run"]
    args = ["scripts/eval_ood.py", "--root", run_root, "--fsood", "--save-csv", "--id-data"]
    name = "adascale_logit_resnet50"
    several = ["--postprocessors", f"msp,{name}", *args, "my-digits", "--save-score"]
    done = run_script([*runner, *several], env=env)
    assert "Performing inference on my-digits test set" in done.stdout
    found = table(run_root / "fsood/msp.csv")
    run_script([*args, "cifar10", "--postprocessor", "msp"], env=env)
    pd.testing.assert_frame_equal(table(run_root / "fsood/msp.csv"), found, atol=0.011, rtol=0)
    figures = table(run_root / f"fsood/{name}.csv")
    assert list(figures.index) == list(found.index)
    assert figures["ACC"].to_list() == found["ACC"].to_list()
    assert 60 < figures["AUROC"]["farood"] <= 100
    assert (run_root / f"s0/postprocessors/{name}.pkl").stat().st_size < 20_000
    with open(run_root / f"s0/scores/{name}.pkl", "rb") as file:
        assert np.isfinite(pickle.load(file)["csid"]["cifar10c"][1]).all()


def test_eval_ood_by_itself_says_what_to_do(run_script, description, tmp_path):
    yml = write_description(tmp_path / "mine.yml", description)
    args = ["scripts/eval_ood.py", "--root", "results", "--id-data", "my-digits"]
    done = run_script(args, env={VARIABLE: str(yml)}, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'my-digits'" in done.stderr
    assert f"have it take yours by python -m openood_adascale run {' '.join(args)}" in done.stderr


@pytest.mark.parametrize("several", [[], ["--postprocessors", "msp,knn"]])
def test_what_the_runner_refuses(run_script, description, tmp_path, several):
    del description["network"]
    yml = write_description(tmp_path / "mine.yml", description)
    run = ["-m", "openood_adascale", "run", *several]

    def refused(*args):
        done = run_script([*run, *args, "--id-data", "my-digits"], env={VARIABLE: str(yml)}, check=False)
        assert done.returncode == 2
        return done.stderr.splitlines()[-1]

    assert f"openood-adascale run: {yml}: network: None" in refused("scripts/eval_ood.py", "--root", "x")
    told = refused("scripts/eval_ood_imagenet.py", "--tvs-pretrained")
    assert "script: 'scripts/eval_ood_imagenet.py' is not allowed" in told
    assert "--id-data, NUM_CLASSES, MODEL is not there" in told


NAMES_SCRIPT = """
import torch
from openood.evaluation_api import Evaluator, datasets
from openood.preprocessors.transform import normalization_dict
assert datasets.DATA_INFO["imagenet200"]["num_classes"] == 200 and "covid" not in datasets.DATA_INFO
assert normalization_dict["covid"][0] == [0.4907] * 3
assert datasets.DATA_INFO["my-digits"]["num_classes"] == 10
for name in ("imagenet200", "covid"):
    try: Evaluator(torch.nn.Identity(), id_name=name, postprocessor_name="msp")
    except ValueError as error: print(error)
"""


def test_names_that_openood_has_by_the_variable(run_script, description, tmp_path):
    """Said once, met by whoever asks for them, and no hindrance to another data set."""
    ymls = [
        write_description(tmp_path / f"{name}.yml", {**description, "name": name})
        for name in ("imagenet200", "my-digits", "covid")
    ]
    (tmp_path / "own.py").write_text(NAMES_SCRIPT)
    done = run_script([tmp_path / "own.py"], env={VARIABLE: os.pathsep.join(map(str, ymls))})
    for said in (done.stdout, done.stderr):
        for name in ("imagenet200", "covid"):
            told = f"{name}.yml: name: {name!r} is not allowed; expected a name that OpenOOD does not have"
            assert said.count(told) == 1, said


def test_without_this_package_the_variable_is_nothing(run_script, description, tmp_path):
    yml = write_description(tmp_path / "mine.yml", description)
    code = "import sys, torch; from openood.evaluation_api import Evaluator, datasets; print(list(datasets.DATA_INFO))"
    shown = run_script(
        ["-c", code], env={VARIABLE: str(yml), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}, check=False
    )
    assert "my-digits" not in shown.stdout + shown.stderr


OWN_SCRIPT = """
import torch
from openood.evaluation_api import Evaluator
from openood_postprocessing import SmallNet
evaluator = Evaluator(SmallNet().eval(), id_name="my-digits", config_root="configs", postprocessor_name="msp", num_workers=1)
print(evaluator.eval_ood(progress=False).to_csv())
"""


def test_a_script_of_ones_own(run_script, small_evaluator, description, tmp_path):
    """The variable is all that it needs."""
    yml = write_description(tmp_path / "mine.yml", description)
    (tmp_path / "own.py").write_text(OWN_SCRIPT)
    path = {"PYTHONPATH": ":".join(sys.path)}
    done = run_script([tmp_path / "own.py"], env={VARIABLE: str(yml), **path})
    want = small_evaluator("msp", net=SmallNet().eval()).eval_ood(progress=False)
    lines = done.stdout[done.stdout.rindex(",FPR@95") :].splitlines()[1:-1]
    figures = np.array([[float(number) for number in line.split(",")[1:]] for line in lines if line])
    np.testing.assert_allclose(figures, want.to_numpy(), atol=1e-6)

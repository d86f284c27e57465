"""One pass for a whole comparison, by OpenOOD's untouched scripts."""

from __future__ import annotations

import re

import pandas as pd
import pytest

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


def images_of(done) -> int:
    return int(re.search(r"^IMAGES (\d+)$", done.stdout, re.M)[1])


@pytest.mark.parametrize("run_root", [("s0",)], indirect=True)
def test_a_second_run_needs_no_network(run_script, run_root, tmp_path):
    """adascale, then adascale_logit with its search, then others, in a process each."""
    script = tmp_path / "counting.py"
    script.write_text(COUNTING)
    env = {"OPENOOD_ADASCALE_STORE": str(tmp_path / "store")}

    def run(name, **more):
        args = [script, "scripts/eval_ood.py", "--root", run_root, "--postprocessor", name, "--save-csv"]
        done = run_script(args, env={**env, **more})
        for path in (run_root / "s0" / "postprocessors").glob("*.pkl"):
            path.unlink()
        return images_of(done)

    assert run("adascale") > 500
    assert run("adascale_logit") == 0
    assert run("msp") <= 64  # a few images are scored both ways


@pytest.mark.parametrize("run_root", [("s0",)], indirect=True)
def test_many_postprocessors_in_one_run(run_script, run_root, tmp_path):
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
    assert (
        "openood-adascale: rankfeat: run on the images, as always: it needs features of inner layers"
        in done.stderr
    )
    summary = done.stdout[done.stdout.rindex("near FPR@95") :].splitlines()
    rows = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in summary[1:5]}
    assert sorted(rows) == sorted({*names} - {"nonsense"})
    assert [row[1] for row in rows.values()] == sorted((row[1] for row in rows.values()), reverse=True)
    for name, row in rows.items():
        table = pd.read_csv(run_root / f"ood/{name}.csv", index_col=0)
        near = [float(table.loc["nearood", column].split(" ± ")[0]) for column in ("FPR@95", "AUROC")]
        assert row[:2] == near
    assert summary[-1].startswith("nonsense: failed: ")
    # By itself each gives the same.
    done = run_script(
        ["scripts/eval_ood.py", "--root", run_root, "--postprocessor", "react", "--save-csv"],
        env={"OPENOOD_ADASCALE_STORE": "off"},
    )
    alone = pd.read_csv(run_root / "ood/react.csv", index_col=0)
    assert float(alone.loc["nearood", "AUROC"].split(" ± ")[0]) == pytest.approx(rows["react"][1], abs=0.011)


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
    forbidden = {"OPENOOD_ADASCALE_DISABLE": "register"}
    done = run_script(["-c", WITHOUT_OPENOOD, *options], env=forbidden, check=False)
    assert (done.returncode, "OPENOOD_ADASCALE_DISABLE" in done.stderr.splitlines()[-1]) == (2, True)


def test_what_the_command_refuses(run_script):
    def refused(*args):
        done = run_script(["-m", "openood_adascale", "run", *args], check=False)
        assert done.returncode == 2
        return done.stderr.splitlines()[-1]

    assert "--postprocessor" in refused(
        "--postprocessors", "msp", "scripts/eval_ood.py", "--postprocessor", "knn"
    )
    assert "separated by commas" in refused("--postprocessors", " , ", "scripts/eval_ood.py")
    assert "is no store" in refused("--store", "scripts", "scripts/eval_ood.py", "--root", "x")

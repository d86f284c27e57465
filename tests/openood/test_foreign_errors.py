"""What is said where a postprocessor of OpenOOD's cannot be a method of `evaluate`; and the command with some that can."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
from command_line import call_here as call
from six_digits import TRANSFORM, Plain

from openood_adascale import evaluate
from openood_adascale.errors import SettingError
from openood_adascale.plugin.foreign import foreign

pytestmark = pytest.mark.usefixtures("_undone")


@pytest.mark.parametrize(
    ("name", "lacks", "told"),
    [
        ("knn", "train", "--train: None .* train images, which this method needs"),
        ("react", "val", "--val: None .* val images"),
        ("mds", "labels", "--train: labels: None .* class of each train image"),
        ("temp_scaling", "labels", "--val: labels: None"),
        ("mds_ensemble", "labels", "--train: labels: None"),
    ],
)
def test_what_lacks_is_named(name, lacks, told, digits):
    if lacks == "labels":
        for loader in (digits.train, digits.val):
            loader.dataset.labels = [-1] * len(loader.dataset)
    else:
        setattr(digits, lacks, None)
    with pytest.raises(SettingError, match=told):
        evaluate(foreign(name, Plain().eval(), False), digits, search=False, progress=False)


NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 32, 5, 4), nn.Linear(128, 6)

    def forward(self, images):
        return self.head(nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1))

def network():
    torch.manual_seed(0)
    return Net()
"""


def test_the_command(checkout, tmp_path, digits):
    for name, loader in (("id", digits.test), ("train", digits.train), ("near", digits.near["tin"])):
        for number, (path, label) in enumerate(zip(loader.dataset.paths, loader.dataset.labels, strict=True)):
            target = tmp_path / name / (f"class {label}" if label >= 0 else "") / f"{number:04}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    (tmp_path / "net.py").write_text(NETWORK)

    def run(methods, *more, check=True):
        given = [
            "--network",
            tmp_path / "net.py:network",
            "--transform",
            TRANSFORM,
            "--id",
            tmp_path / "id",
            "--near",
        ]
        given += [f"n={tmp_path / 'near'}", "--out", tmp_path / "out", "--workers", "0", "--quiet"]
        return call("evaluate", *given, "--methods", methods, *more, check=check)

    done = run("ebo,openood:ebo,openood:mds", "--train", tmp_path / "train", "--labels", "folders")
    assert "left out" not in done.stdout
    tables = {path.stem: pd.read_csv(path, index_col=0) for path in (tmp_path / "out/ood").glob("*.csv")}
    assert set(tables) == {"ebo", "openood_ebo", "openood_mds"}
    pd.testing.assert_frame_equal(tables["openood_ebo"], tables["ebo"], atol=0.011)
    assert tables["openood_mds"]["AUROC"].between(1, 100).all()
    assert "MDS (OpenOOD)" in (tmp_path / "out/report/report.html").read_text()
    # By itself, and with methods that cannot be run here.
    shutil.rmtree(tmp_path / "out")
    done = run("openood:msp,openood:knn,openood:gmm,openood:mds", "--labels", "folders", check=False)
    assert done.returncode == 1
    assert "openood:knn: left out: --train: None is not allowed" in done.stdout
    assert "openood:mds: left out: --train: None is not allowed" in done.stdout
    assert "openood:gmm: left out: " in done.stdout
    assert [path.stem for path in (tmp_path / "out/ood").glob("*.csv")] == ["openood_msp"]
    assert pd.read_csv(tmp_path / "out/ood/openood_msp.csv")["ACC"].iloc[0] == tables["ebo"]["ACC"].iloc[0]
    done = run("openood:knn", check=False)
    assert done.returncode == 2
    assert "at least one that can be run here" in done.stderr


@pytest.mark.parametrize("name", ["nonsense", "adascale", "dropout2"])
def test_names_that_there_are_not(name):
    with pytest.raises(
        SettingError, match=f"--methods: 'openood:{name}' .*openood:all .msp, mls.*, knn.*vra$"
    ):
        foreign(name, Plain())


def test_without_a_yml_nothing_is_downloaded():
    from openood.evaluation_api.postprocessor import postprocessors

    assert "patchcore" in postprocessors
    with pytest.raises(SettingError, match=r"--methods: 'openood:patchcore' .* there is no .*patchcore\.yml"):
        foreign("patchcore", Plain())

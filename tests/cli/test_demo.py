"""The demo, in a fresh process and with half of its training."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import quick_process
import torch
from command_line import call_here
from PIL import Image
from tiny import HEAD, TinyNet
from torch.utils.data import TensorDataset

from openood_adascale import demo

DEMO = """
import functools, sys
from openood_adascale import cli, demo
demo.train = functools.partial(demo.train, epochs=6)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.filterwarnings("ignore")
def test_demo(tmp_path):
    command = ["-c", DEMO, "demo", "--output", tmp_path / "out", "--quiet"]
    done = quick_process.run(command, check=True)
    assert done.stderr == ""
    summary = pd.read_csv(tmp_path / "out/summary.csv", index_col=0)
    assert list(summary.index)[:3] == ["MSP", "EBO", "SCALE"]
    assert {"AdaSCALE-A", "AdaSCALE-L"} <= set(summary.index)
    assert summary.loc[["AdaSCALE-A", "AdaSCALE-L", "EBO"], "near AUROC"].min() > 80
    assert summary["near AUROC"].min() > 60  # LTS varies with the machine
    assert (tmp_path / "out/demo.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "out/ood/adascale.csv", index_col=0)
    assert list(table.index) == [
        "digits_6_7",
        "digits_8_9",
        "nearood",
        "photo_china",
        "photo_flower",
        "farood",
    ]
    assert table["ACC"].min() > 95
    assert len(pd.read_csv(tmp_path / "out/search_adascale.csv")) == 36
    for name in summary.index:
        assert f"{name} (" in done.stdout
    images = pd.read_csv(tmp_path / "out/images.csv")
    assert (images["class"] == images["prediction"]).all()  # the digits' names
    call_here("report", tmp_path / "out")
    page = (tmp_path / "out/report/report.html").read_text(encoding="utf-8")
    assert "AdaSCALE-A against" in page
    assert page.count("<small title=") > 100
    assert "photo_china/" in page
    for name in ("scale", "adascale"):  # a search over pairs is a picture, one over numbers a table
        assert (tmp_path / f"out/report/search_{name}.png").exists() == (name == "adascale")


@pytest.mark.filterwarnings("ignore:.*names are left out")  # of a network with other classes
def test_an_image_goes_through_the_network_once(tmp_path, monkeypatch, capsys):
    """For its scores, the accuracy and the picture of the percentiles; and once more perturbed."""
    torch.manual_seed(0)
    network = TinyNet().eval()
    monkeypatch.setattr(demo, "train", lambda *args, **kwargs: network)
    summary = demo.run(tmp_path, progress=False)
    benchmark, data = demo.load_benchmark()
    judged = [
        benchmark.test,
        benchmark.val,
        benchmark.ood_val,
        *benchmark.near.values(),
        *benchmark.far.values(),
    ]
    # Two more find the head.
    assert sum(network.calls) == 2 * sum(len(loader.dataset) for loader in judged) + len(data) + HEAD
    accuracy = pd.read_csv(tmp_path / "ood" / "msp.csv", index_col=0)["ACC"].iloc[0]
    assert f"test accuracy {accuracy:.2f} %" in capsys.readouterr().out
    assert len(summary) == 8
    # Each number stands beside the picture that it is of.
    table = pd.read_csv(tmp_path / "images.csv")
    loaders = {"id": benchmark.test, **benchmark.near, **benchmark.far}
    assert len(table) == sum(len(loader.dataset) for loader in loaders.values())
    black, white = (float(end) for end in torch.aminmax(benchmark.test.dataset.tensors[0]))
    with torch.no_grad():
        for name, loader in loaders.items():
            rows = table[table["set"] == name]
            images = loader.dataset.tensors[0]
            np.testing.assert_allclose(rows["score_ebo"], network(images).logsumexp(1), rtol=1e-4)
            for place in (0, len(rows) - 1):
                with Image.open(rows["path"].iloc[place]) as picture:
                    grey = np.asarray(picture) / 255
                np.testing.assert_allclose(
                    grey, ((images[place, 0] - black) / (white - black)).clamp(0, 1), atol=0.003
                )
            assert rows["percentile_adascale"].between(60, 99).all()


def test_the_default_device_does_not_matter(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "_run", lambda *args: torch.empty(0).device.type)
    with torch.device("meta"):
        assert demo.run(tmp_path) == "cpu"
        _, data = demo.load_benchmark()
        few = TensorDataset(*data[:70])
        network = demo.train(few, epochs=1, progress=False)
    assert {tensor.device.type for tensor in (*few.tensors, *network.parameters())} == {"cpu"}

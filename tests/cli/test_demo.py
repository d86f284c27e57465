"""The demo command, with one epoch of training."""

from __future__ import annotations

import functools
import re

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import call

pytest.importorskip("jinja2", reason="needs the extra plots")

from openood_adascale.demo import run as demo
from openood_adascale.demo.data import load_data

LABELS = ["MSP", "EBO", "SCALE", "LTS", "BFAct", "OptFS", "AdaSCALE-A", "AdaSCALE-L"]


@pytest.mark.drawn
@pytest.mark.filterwarnings("ignore")
def test_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "train", functools.partial(demo.train, epochs=1))
    monkeypatch.setattr(demo, "run", functools.partial(demo.run, epochs=1))
    done = call("demo", "--output", tmp_path, "--quiet")
    assert done.stderr == ""
    data = load_data(0)
    assert list(pd.read_csv(tmp_path / "ood/adascale.csv", index_col=0).index) == [
        *data.near, "nearood", *data.far, "farood",
    ]  # fmt: skip
    assert (tmp_path / "story.png").stat().st_size > 10_000
    assert len(list((tmp_path / "images" / "id").glob("*.png"))) == len(data.test)
    assert f"Report: {tmp_path / 'report/index.html'}" in done.stdout
    images = pd.read_parquet(tmp_path / "images.parquet")
    assert len(images) == len(data.test) + sum(map(len, [*data.near.values(), *data.far.values()]))
    svg = (tmp_path / "report/figures/methods_ood.svg").read_text(encoding="utf-8")
    for label in LABELS:
        printed = re.search(rf"^{label} +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", done.stdout, re.MULTILINE)
        assert printed, label
        assert all(f">{number}</text>" in svg for number in printed.groups()), label


def test_benchmark_holds_the_images_of_the_demo():
    data = load_data(0)
    benchmark = demo.make_benchmark(data)
    images, labels = next(iter(benchmark.test))
    torch.testing.assert_close(images, data.normalize(data.test[: len(images)]))
    np.testing.assert_array_equal(labels, data.test_labels[: len(labels)])
    assert (next(iter(benchmark.near[next(iter(data.near))]))[1] == -1).all()


def test_default_device_does_not_matter(monkeypatch, tmp_path):
    def train(*args, **settings):
        raise RuntimeError(torch.empty(0).device.type)

    monkeypatch.setattr(demo, "train", train)
    with torch.device("meta"), pytest.raises(RuntimeError, match="cpu"):
        demo.run(tmp_path)

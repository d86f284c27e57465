"""The README's lines for pytorch-ood, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import make_images, make_loader

pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")

from openood_adascale import Benchmark

README = Path(__file__).parents[2] / "README.md"


def test_its_snippet_runs(network, fit_loader, val_loader, test_images):
    section = README.read_text(encoding="utf-8").partition("## With pytorch-ood")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    benchmark = Benchmark(
        test=make_loader(make_images(30, 7)),
        near={"near": make_loader(make_images(20, 8, 0.3))},
        far={"far": make_loader(make_images(20, 9, 3))},
        val=make_loader(make_images(40, 10)),
        ood_val=make_loader(make_images(40, 11, 0.5)),
        train=make_loader(make_images(60, 12)),
    )
    names = {
        "network": network, "features": network.features, "loader": fit_loader, "validation_loader": val_loader,
        "images": test_images, "benchmark": benchmark,
    }  # fmt: skip
    exec(found[1], names)
    assert names["scores"].shape == (24,)
    assert names["best"]["percentile"] in names["detector"].hyperparameter_space["percentile"]
    assert list(names["results"]) == ["AdaSCALE-A", "KNN"]
    assert torch.isfinite(names["scores"]).all()

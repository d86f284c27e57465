"""A benchmark of few images that the tests share."""

from __future__ import annotations

import pytest
import torch
from networks import TinyNet, make_images, make_loader

from openood_adascale.evaluation.benchmark import Benchmark


@pytest.fixture
def network() -> TinyNet:
    torch.manual_seed(0)
    network = TinyNet()
    with torch.no_grad():
        for _ in range(20):  # batch statistics that differ from eval mode's
            network.train()(torch.randn(16, 3, 8, 8) * 2 + 1)
    network.calls.clear()
    return network.eval()


@pytest.fixture
def data() -> Benchmark:
    return Benchmark(
        test=make_loader(make_images(30, 7)),
        near={"a": make_loader(make_images(20, 8, 0.3)), "b": make_loader(make_images(25, 9, 0.5))},
        far={"c": make_loader(make_images(20, 10, 3))},
        val=make_loader(make_images(50, 1)),
        ood_val=make_loader(make_images(40, 2, shift=0.7)),
        covariate_shift={"noisy": make_loader(make_images(10, 11, 0.1))},
    )

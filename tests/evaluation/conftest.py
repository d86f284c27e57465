"""A benchmark of few images that the tests share."""

from __future__ import annotations

import pytest
from networks import make_images, make_loader

from openood_adascale.evaluation.benchmark import Benchmark


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

"""LTS against its definition and pytorch-ood."""

import numpy as np
import pytest
import torch
from rivals import (
    activations,
    head,
    reference_lts,
)

from openood_adascale import AdaSCALE
from openood_adascale.detectors.learning import LearningDetector
from openood_adascale.detectors.lts import LTS


@pytest.mark.parametrize("percentile", [95, 80.5, 99.99])
def test_lts_equals_its_definition_and_adascale_l(net, id_images, percentile):
    score = LTS(net, percentile=percentile).score(id_images)
    want = [reference_lts(a, *head(net), percentile) for a in activations(net, id_images)]
    np.testing.assert_allclose(score.numpy(), want, rtol=2e-5)
    adascale = AdaSCALE(net, variant="L", percentile=(percentile, percentile)).fit([id_images])
    torch.testing.assert_close(score, adascale.score(id_images))


def test_lts_equals_pytorch_oods(net, id_images):
    theirs = pytest.importorskip("pytorch_ood.detector", exc_type=ImportError)
    want = theirs.LTS(net.features, net.fc).predict(id_images)
    torch.testing.assert_close(LTS(net).score(id_images).float(), -want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 9, 10, 30, 50, 70, 90, 128, 342, 2048])
def test_lts_counts_as_pytorch_ood_does(size):
    from openood_adascale import equations

    theirs = pytest.importorskip("pytorch_ood.detector", exc_type=ImportError)
    a = torch.randn(20, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64) + 1
    want = theirs.LTS.scaling_factor(a, 0.05)
    got = equations.scaling_factor(a, 95).square()
    torch.testing.assert_close(got, torch.where(want.isnan(), 1.0, want))


def test_lts_learns_nothing(net, id_images):
    assert not issubclass(LTS, LearningDetector)
    assert LTS(net).state is None
    assert torch.isfinite(LTS(net).score(id_images)).all()

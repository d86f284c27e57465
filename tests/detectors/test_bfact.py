"""BFAct against a float64 reference."""

import numpy as np
import pytest
import torch
from rivals import (
    activations,
    head,
    reference_bfact,
)
from tiny import make_loader

from openood_adascale.detectors.bfact import BFAct, butterworth


@pytest.mark.parametrize(("percentile", "order"), [(95, 2), (80, 1), (99, 3.5)])
def test_bfact_equals_its_definition(net, train_images, id_images, percentile, order):
    detector = BFAct(net, percentile=percentile, order=order).fit(make_loader(train_images))
    exact = np.percentile(activations(net, train_images), percentile)
    assert float(detector.state) == pytest.approx(exact, rel=2**-15)
    a = np.abs(activations(net, id_images)) if order % 1 else activations(net, id_images)
    if (activations(net, id_images) == a).all():
        given_cutoff = [reference_bfact(row, *head(net), float(detector.state), order) for row in a]
        np.testing.assert_allclose(detector.score(id_images).numpy(), given_cutoff, rtol=1e-6)
        with_exact = [reference_bfact(row, *head(net), exact, order) for row in a]
        np.testing.assert_allclose(detector.score(id_images).numpy(), with_exact, rtol=1e-4)


def test_butterworth_where_it_could_break():
    a = torch.tensor([[-2.0, 0.0, 1.0, 1e30]])
    torch.testing.assert_close(
        butterworth(a, 1.0, 1)[0, :3], torch.tensor([-2 / 5**0.5, 0, 0.5**0.5]).double()
    )
    assert torch.equal(butterworth(a, -1.0, 1.5), butterworth(a, 1.0, 1.5))
    assert torch.equal(butterworth(a, 0.0, 2), torch.zeros(1, 4).double())
    for cutoff in (0.0, 1e-30, 1.0, 1e300):
        assert torch.isfinite(butterworth(a, cutoff, 100)).all()

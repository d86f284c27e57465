"""OptFS against a float64 reference."""

import numpy as np
import pytest
import torch
from rivals import (
    activations,
    head,
    reference_optfs,
    reference_theta,
)
from tiny import TinyNet, make_images, make_loader

from openood_adascale.detectors.bfact import BFAct
from openood_adascale.detectors.lts import LTS
from openood_adascale.detectors.optfs import OptFS
from openood_adascale.evidence.histogram import (
    BINS,
)


@pytest.mark.parametrize("score", ["vanilla", "energy"])
@pytest.mark.parametrize(("bins", "percentile"), [(100, (0.1, 99.9)), (7, (5, 90)), (1, (10, 60))])
def test_optfs_equals_its_definition(net, train_images, id_images, score, bins, percentile):
    detector = OptFS(net, bins=bins, percentile=percentile, score=score).fit(make_loader(train_images))
    edges, theta = (detector.state[name].double().numpy() for name in ("edges", "theta"))
    train, a = activations(net, train_images), activations(net, id_images)
    low, high = np.percentile(train, percentile)
    largest = max(abs(low), abs(high))
    np.testing.assert_allclose(edges, np.linspace(low, high, bins + 1), atol=2**-14 * largest, rtol=0)
    # What is learnt is exact for the edges that are used.
    np.testing.assert_allclose(theta, reference_theta(train, *head(net), edges), rtol=1e-4, atol=1e-3)
    assert np.linalg.norm(theta) == pytest.approx(1000)
    want = [reference_optfs(row, *head(net), edges, theta, score) for row in a]
    np.testing.assert_allclose(detector.score(id_images).numpy(), want, rtol=1e-4)
    np.testing.assert_array_equal(
        detector.predict(id_images)[0], (a @ head(net)[0].T + head(net)[1]).argmax(1)
    )


@pytest.mark.parametrize("score", ["vanilla", "energy"])
def test_optfs_with_the_exact_edges(net, score):
    """The edges' error moves a few activations to the next bin; each moves a score a little."""
    train, images = make_images(400, 3), make_images(60, 4)
    detector = OptFS(net, score=score).fit(make_loader(train))
    a = activations(net, train)
    edges = np.linspace(*np.percentile(a, (0.1, 99.9)), 101)
    theta = reference_theta(a, *head(net), edges)
    want = np.array(
        [reference_optfs(row, *head(net), edges, theta, score) for row in activations(net, images)]
    )
    got = detector.score(images).numpy()
    assert np.median(np.abs(got - want)) < 0.05 * want.std()
    assert np.corrcoef(got, want)[0, 1] > 0.998


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_batch_size_and_order_do_not_matter(net, train_images, id_images, method):
    whole = method(net).fit(make_loader(train_images, 120)).score(id_images)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(5))
    for batch_size in (1, 7, 50):
        split = method(net).fit(make_loader(train_images[order], batch_size))
        torch.testing.assert_close(split.score(id_images), whole, rtol=1e-4, atol=1e-4)
        scored = split.predict_loader(make_loader(id_images, batch_size))[1]
        torch.testing.assert_close(torch.from_numpy(scored), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_many_images_are_judged_in_blocks(net, train_images, id_images, method, monkeypatch):
    detector = method(net).fit([train_images])
    whole = detector.score(id_images)
    monkeypatch.setattr("openood_adascale.detectors.shaping._BLOCK", 64 * 3 + 1)
    torch.testing.assert_close(detector.score(id_images), whole)


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_memory_does_not_grow_with_the_images(net, method):
    sizes = []
    for count in (1, 40):
        summary = method(net).fit(make_images(100, seed) for seed in range(count)).summary
        sizes.append(len(summary.bins))
        assert int(summary.counts.sum()) == count * 100 * 64
    assert sizes[1] < BINS / 10


@pytest.mark.parametrize("method", [LTS, BFAct, OptFS])
def test_dead_network(method, id_images):
    network = TinyNet().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for settings_ in [{}] if method is not OptFS else [{}, {"score": "energy"}]:
        score = method(network, **settings_).fit([id_images]).score(id_images)
        want = 0.0 if settings_ == {} and method is OptFS else np.log(5)
        torch.testing.assert_close(score, torch.full((50,), want, dtype=torch.float64))


@pytest.mark.parametrize("method", [LTS, BFAct, OptFS])
def test_precisions_of_the_network(net, train_images, id_images, method):
    want = method(net).fit([train_images]).score(id_images)
    got = method(net.double()).fit([train_images]).score(id_images)
    # float64 can move an activation across an edge
    assert np.corrcoef(got, want)[0, 1] > 0.999

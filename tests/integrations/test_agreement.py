"""Where pytorch-ood has a method of this package's, too: how far the scores agree, and where they do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_ood_networks import Net
from rivals import reference_lts
from scipy.special import logsumexp
from tiny import make_images, make_loader
from torch import nn

pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")

import pytorch_ood.detector as theirs

from openood_adascale import equations
from openood_adascale.integrations import pytorch_ood as ours


def scale(network, percentile):
    """pytorch-ood's SCALE after the last pooling, as its documentation says."""
    return theirs.SCALE(network.maps, network.from_maps, percentile / 100)


PAIRS = {
    "MSP": (lambda network: theirs.MaxSoftmax(network), lambda network: ours.MSP(network)),
    "Energy": (lambda network: theirs.EnergyBased(network), lambda network: ours.Energy(network)),
    "LTS": (lambda network: theirs.LTS(network.features, network.fc), lambda network: ours.LTS(network)),
    "LTS, 10 %": (
        lambda network: theirs.LTS(network.features, network.fc, p=0.1),
        lambda network: ours.LTS(network, percentile=90),
    ),
    "SCALE": (lambda network: scale(network, 85), lambda network: ours.SCALE(network)),
    "SCALE, 65 %": (lambda network: scale(network, 65), lambda network: ours.SCALE(network, percentile=65)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_rectified_activations(network, name, test_images):
    """To single precision, which pytorch-ood computes in."""
    one, other = (make(network) for make in PAIRS[name])
    with torch.no_grad():
        want = one.predict(test_images).double()
    torch.testing.assert_close(other.predict(test_images).double(), want, rtol=1e-5, atol=1e-5)


@pytest.fixture
def signed():
    torch.manual_seed(0)
    network = Net()
    network.features.append(nn.LayerNorm(64))
    return network.eval()


@pytest.mark.parametrize("name", ["MSP", "Energy", "LTS", "LTS, 10 %"])
def test_activations_of_both_signs(signed, name, test_images):
    test_rectified_activations(signed, name, test_images)


def test_scale_differs_on_activations_of_both_signs(signed, test_images):
    """pytorch-ood's SCALE sums the activations as they are, this package's (as OpenOOD's and LTS's) their positive parts."""
    with torch.no_grad():
        activations = signed.features(test_images).double().numpy()
        got = scale(signed, 85).predict(test_images).double().numpy()
    weight, bias = (tensor.detach().double().numpy() for tensor in (signed.fc.weight, signed.fc.bias))

    def energy(a, summed):
        largest = np.sort(summed)[::-1][: 64 - round(64 * 0.85)]
        return -logsumexp(np.exp(summed.sum() / largest.sum()) * weight @ a + bias)

    np.testing.assert_allclose(got, [energy(a, a) for a in activations], rtol=1e-5)
    rectified = [energy(a, np.maximum(a, 0)) for a in activations]
    np.testing.assert_allclose(ours.SCALE(signed)(test_images).numpy(), rectified, rtol=1e-5)
    assert np.median(np.abs(got - rectified)) > 0.1


def test_which_counts_of_the_largest_differ():
    """k of SCALE: pytorch-ood rounds n·0.7 as a float, which can lie below the half that OpenOOD and this package round to
    even; and it can take none of 10 activations or fewer, where these take one."""
    differing = {}
    for percentile in (65, 70, 75, 80, 85, 90, 95):
        for size in range(1, 2049):
            one = size - int(np.round(size * (percentile / 100)))
            other = int(equations.kept_count(torch.tensor(percentile, dtype=torch.float64), size))
            assert other == max(1, size - int(np.round(size * percentile / 100)))
            if one != other:
                differing.setdefault(percentile, {})[size] = (one, other)
    none = {size for sizes in differing.values() for size, counts in sizes.items() if counts == (0, 1)}
    assert none == set(range(1, 11))
    of_70 = {size: counts for size, counts in differing.pop(70).items() if size not in none}
    assert all({*sizes} <= none for sizes in differing.values())
    assert {45, 85, 165, 325, 1285, 1305} <= {*of_70}
    assert all(size % 20 == 5 and one == other + 1 for size, (one, other) in of_70.items())
    for size in (128, 192, 256, 384, 512, 640, 768, 1024, 1280, 1536, 2048):
        assert size not in of_70


def test_without_any_positive_activation(network, test_images):
    """0/0: pytorch-ood's scores are NaN, this package's r is 1."""
    with torch.no_grad():
        network.features[4].weight.zero_()
        network.features[4].bias.fill_(-1)
        assert theirs.LTS(network.features, network.fc).predict(test_images).isnan().all()
        assert scale(network, 85).predict(test_images).isnan().all()
        bias = network.fc.bias.double()
    torch.testing.assert_close(ours.LTS(network)(test_images), -bias.logsumexp(0).expand(24))
    torch.testing.assert_close(ours.SCALE(network)(test_images), -bias.logsumexp(0).expand(24))


def test_lts_against_its_definition(network, test_images):
    weight, bias = (tensor.detach().double().numpy() for tensor in (network.fc.weight, network.fc.bias))
    with torch.no_grad():
        activations = network.features(test_images).double().numpy()
    want = [-reference_lts(a, weight, bias, 95) for a in activations]
    np.testing.assert_allclose(ours.LTS(network)(test_images).numpy(), want, rtol=1e-5)


@pytest.mark.parametrize("percent", [85, 95, 99])
def test_react_s_threshold_is_bfact_s_cut_off(network, percent):
    """Both are a percentile of all activations; the filters on top differ. Ours is exact to 2^-15."""
    loader = make_loader(make_images(200, 1))
    threshold = theirs.ReAct(network.maps, network.from_maps, percentile=percent / 100).fit(loader).threshold
    cutoff = float(ours.BFAct(network, percentile=percent).fit(loader).core.state)
    assert cutoff == pytest.approx(threshold, rel=2**-15)

"""Tests of detectors on networks with different last layers."""

from __future__ import annotations

import copy

import networks as nets
import numpy as np
import pytest
import torch
from detector_tester import DetectorTester
from networks import make_images
from torch import nn

from openood_adascale import AdaSCALE, Benchmark, evaluate, load_detector
from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import DetectorFileError, HeadMismatchError, NotFittedError

FIT, IMAGES = make_images(40, 3), make_images(20, 4)
every_head = pytest.mark.parametrize("make_head", nets.LINEAR_HEADS, ids=lambda make: make.__name__)


def network_and_plain(make_head):
    """Return a network with a head, and a copy with a plain ``nn.Linear`` of the same W and b."""
    torch.manual_seed(0)
    network = nets.with_head(lambda *sizes: make_head())
    with torch.no_grad():
        network(IMAGES[:2])  # hooks set the weight
        plain = nets.with_head(lambda *sizes: nn.Linear(*sizes, bias=network.fc.bias is not None))
        plain.features.load_state_dict(network.features.state_dict())
        plain.fc.weight.copy_(network.fc.weight)
        if network.fc.bias is not None:
            plain.fc.bias.copy_(network.fc.bias)
    return network, plain


@every_head
class TestLinearHeads:
    def test_scores_equal_those_of_a_plain_layer(self, make_head, tmp_path):
        network, plain = network_and_plain(make_head)
        loaders = [[make_images(9, seed, shift=seed / 5)] for seed in range(6)]
        benchmark = Benchmark(loaders[0], {"n": loaders[1]}, {"f": loaders[2]}, *loaders[3:])
        found = []
        for one in (plain, network):
            detectors = {name: DetectorTester(name).make(one) for name in METHODS}
            found.append(evaluate(detectors, benchmark, progress=False, search=False, known_accuracy=0.0))
        for name, detector in detectors.items():
            for scores, want in zip(*(one[name].scores.values() for one in found), strict=True):
                np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-5, err_msg=name)
            detector.save(tmp_path / name)
            again = load_detector(tmp_path / name, network)
            assert torch.equal(again.score(IMAGES), detector.score(IMAGES)), name

    def test_search_equals_that_of_a_plain_layer(self, make_head):
        network, plain = network_and_plain(make_head)
        tester = DetectorTester("adascale")
        detector = tester.make(network.train())
        aurocs = [tester.search(one, FIT, IMAGES).results["auroc"] for one in (detector, tester.make(plain))]
        np.testing.assert_allclose(*aurocs, atol=0.5)
        tester.assert_agrees(detector, FIT, IMAGES, rtol=1e-4)

    def test_trained_weights_need_another_fit(self, make_head, tmp_path):
        network, _ = network_and_plain(make_head)
        detector = AdaSCALE(network).fit([FIT])
        detector.save(tmp_path / "d")
        nets.training_step(network, FIT)
        with pytest.raises(NotFittedError):
            detector.score(IMAGES)
        with pytest.raises(DetectorFileError, match="tensor"):
            AdaSCALE.load(tmp_path / "d", network)
        detector.fit([FIT]).score(IMAGES)


@pytest.mark.parametrize("layer", nets.NO_LINEAR_HEAD, ids=lambda layer: layer.__name__)
def test_nonlinear_head_is_refused_by_every_method(layer):
    torch.manual_seed(0)
    network = nets.with_head(layer)
    for name in METHODS:
        with pytest.raises(ValueError, match=r"^network: "):
            DetectorTester(name).fit(network, FIT).score(IMAGES)


def test_head_that_becomes_nonlinear_is_refused(network):
    detector = AdaSCALE(network).fit([FIT])
    handle = network.fc.register_forward_hook(lambda module, inputs, output: output * 1.01)
    for ask in (
        lambda: detector.score(IMAGES),
        lambda: detector.fit([FIT]),
        lambda: detector.predict_loader([IMAGES]),
    ):
        with pytest.raises(HeadMismatchError, match="'fc'"):
            ask()
    handle.remove()
    detector.score(IMAGES)


def test_hook_before_the_head_changes_the_activation(network):
    """The head's input is the activation, with whatever hooks make of it: W a + b still holds."""
    want = AdaSCALE(copy.deepcopy(network)).fit([FIT]).score(IMAGES)
    detector = AdaSCALE(network)
    network.fc.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2)
    got = detector.fit([FIT]).score(IMAGES)
    assert not torch.allclose(got, want)
    assert torch.equal(got, AdaSCALE(copy.deepcopy(network)).fit([FIT]).score(IMAGES))


def test_replaced_head_is_found_again(network):
    for method in ("msp", "ebo"):
        detector = DetectorTester(method).make(network)
        detector.score(IMAGES)
        network.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 7)).eval()
        assert torch.equal(detector.score(IMAGES), DetectorTester(method).make(network).score(IMAGES))
        network.fc = nn.Sequential(network.fc, nn.Linear(7, 3))
        assert torch.equal(detector.score(IMAGES), DetectorTester(method).make(network).score(IMAGES))
        network.fc = nn.Linear(64, 5)


def test_detectors_of_two_networks_are_independent(network):
    other = nets.with_head(nn.Linear)
    alone = [AdaSCALE(one).fit([FIT]).score(IMAGES) for one in (network, other)]
    detectors = [AdaSCALE(one) for one in (network, other)]
    for detector in detectors:
        detector.fit([FIT])
    for detector, want in zip(detectors, alone, strict=True):
        assert torch.equal(detector.score(IMAGES), want)

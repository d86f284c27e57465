"""Images as features: what an encoder gives, what is learnt and scored from it, and what is refused."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from pytorch_ood_networks import Net, passes
from tiny import HEAD, TinyNet, make_images

pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")

from pytorch_ood.utils import extract_features

from openood_adascale.errors import NotFinite, SettingError
from openood_adascale.integrations import pytorch_ood as integration

NAMES = ["MSP", "Energy", "SCALE", "LTS", "BFAct", "OptFS", "AdaSCALE", "AdaSCALE_L"]
PERTURBING = {"AdaSCALE", "AdaSCALE_L"}


@pytest.mark.parametrize("name", NAMES)
def test_features_stand_for_images(network, name, fit_loader, test_images):
    kind = getattr(integration, name)
    want = kind(network).fit(fit_loader).predict(test_images)
    detector = kind(network)
    features, labels = extract_features(fit_loader, detector.encoder, "cpu")
    assert len(labels) == 50
    detector.fit_features(features, labels)
    got = detector.predict_features(detector.encoder(test_images))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(detector.predict(test_images), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_without_perturbations_they_are_the_activations(network, name, test_images):
    features = getattr(integration, name)(network).encoder(test_images)
    with torch.no_grad():
        torch.testing.assert_close(features[:, :64], network.features(test_images))
    assert features.shape == (24, 129 if name in PERTURBING else 64)


@pytest.mark.parametrize("name", ["BFAct", "OptFS", "AdaSCALE"])
def test_rows_with_negative_labels_are_left_out(network, name, fit_loader, test_images):
    images, labels = fit_loader.dataset.tensors
    kind = getattr(integration, name)
    detector = kind(network)
    features = detector.encoder(images)
    got = detector.fit_features(features, labels).predict_features(detector.encoder(test_images))
    other = kind(network).fit_features(features[labels >= 0], labels[labels >= 0])
    torch.testing.assert_close(other.predict_features(other.encoder(test_images)), got, rtol=0, atol=0)
    everything = kind(network).fit_features(features, labels.abs())
    assert not torch.allclose(everything.predict(test_images), got, rtol=1e-3)
    with pytest.raises(ValueError, match="y: 3 labels for 80 rows"):
        detector.fit_features(features, labels[:3])


def test_activations_are_not_enough_for_what_perturbs_images(network, fit_loader, test_images):
    detector = integration.AdaSCALE(network).fit(fit_loader)
    with torch.no_grad():
        activations = network.features(test_images)
    with pytest.raises(ValueError, match=r"images with Perturbation.* are not among them"):
        detector.predict_features(activations)
    with pytest.raises(ValueError, match="are not among them"):
        detector.fit_features(activations, torch.zeros(24))


def test_features_of_another_perturbation_are_refused(network, fit_loader, test_images):
    detector = integration.AdaSCALE(network)
    features = detector.encoder(test_images)
    detector.epsilon = 0.25
    detector.fit(fit_loader)
    with pytest.raises(ValueError, match=r"epsilon=0\.25.* are not among them"):
        detector.predict_features(features)
    torch.testing.assert_close(
        detector.predict_features(detector.encoder(test_images)), detector(test_images), rtol=1e-5, atol=0
    )


def test_features_of_several_perturbations(network, fit_loader, test_images):
    detector = integration.AdaSCALE(network)
    detector.hyperparameter_space = {"epsilon": [0.5, 0.1], "pixels": ["trivial", "all"]}
    features = detector.encoder(test_images)
    assert features.shape == (24, 64 + 4 * 65)
    for epsilon in (0.1, 0.5):
        for pixels in ("all", "trivial"):
            detector.set_hyperparameters(epsilon=epsilon, pixels=pixels).fit(fit_loader)
            want = integration.AdaSCALE(network, epsilon=epsilon, pixels=pixels).fit(fit_loader)(test_images)
            torch.testing.assert_close(detector.predict_features(features), want, rtol=1e-5, atol=0)


def test_bad_features(network, fit_loader):
    detector = integration.BFAct(network)
    with pytest.raises(
        RuntimeError, match="the head of Net is not known before an image has gone through it"
    ):
        detector.fit_features(torch.rand(4, 64), torch.zeros(4))
    detector.fit(fit_loader)
    for shape in ((4, 63), (4, 65), (4, 64, 1), (4, 32)):
        with pytest.raises(ValueError, match=r"features: shape .* expected \(B, 64\)"):
            detector.predict_features(torch.rand(shape))
    with pytest.raises(TypeError, match=r"features: torch\.int64"):
        detector.predict_features(torch.ones(4, 64, dtype=torch.int64))
    features = torch.rand(4, 64)
    features[2, 5] = torch.inf
    with pytest.raises(NotFinite, match=r"features: NaN or infinity for 1 image.*number 2"):
        detector.predict_features(features)
    assert detector.predict_features(torch.rand(0, 64)).shape == (0,)


def test_another_head_is_not_taken_for_the_network_s(network, fit_loader, test_images):
    detector = integration.LTS(network)
    features = detector.encoder(test_images)
    before = detector.predict_features(features)
    with torch.no_grad():
        network.fc.weight.mul_(2)
    changed = detector.predict_features(features)
    torch.testing.assert_close(changed, detector(test_images), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(changed, before, rtol=1e-2)
    network.fc = torch.nn.Linear(64, 5)
    with pytest.raises(RuntimeError, match="the head of Net is not known"):
        detector.predict_features(features)


def test_detectors_of_one_network_share_an_encoder(network):
    one, other = integration.SCALE(network), integration.OptFS(network)
    assert one.encoder is other.encoder is one.encoder
    adascale = integration.AdaSCALE(network)
    assert adascale.encoder is integration.AdaSCALE_L(network, percentile=(60, 70)).encoder
    assert adascale.encoder is not one.encoder
    assert integration.AdaSCALE(network, epsilon=0.1).encoder is not adascale.encoder
    assert integration.SCALE(network, precision="bfloat16").encoder is not one.encoder
    assert integration.SCALE(TinyNet().eval()).encoder is not one.encoder
    gone = weakref.ref(one.encoder)
    del one, other
    gc.collect()
    assert gone() is None


def test_a_network_is_not_kept_alive(fit_loader, test_images):
    detector = integration.AdaSCALE(Net().eval()).fit(fit_loader)
    detector.predict_features(detector.encoder(test_images))
    gone = weakref.ref(detector.model)
    del detector
    gc.collect()
    assert gone() is None


def test_evidence_is_kept_as_long_as_its_features(network, fit_loader, test_images):
    detector = integration.AdaSCALE(network).fit(fit_loader)
    features = detector.encoder(test_images)
    first = detector.predict_features(features)
    detector.percentile = (60, 99)  # wider than what was asked for at first
    want = integration.AdaSCALE(network, percentile=(60, 99)).fit(fit_loader)(test_images)
    torch.testing.assert_close(detector.predict_features(features), want, rtol=1e-5, atol=0)
    assert len(detector._kept._made) == 1
    detector.percentile = (80, 85)
    features[:12] = features[12:].clone()  # in place
    torch.testing.assert_close(detector.predict_features(features), first[12:].repeat(2), rtol=1e-6, atol=0)
    del features
    gc.collect()
    assert detector._kept._made == []


def test_a_space_that_cannot_be_searched_is_told_before_the_pass(network):
    detector = integration.OptFS(network)
    for space, match in (
        ({"depth": [1]}, "hyperparameter_space: depth: .*what can be searched: bins, percentile, score"),
        ({"learn_from": ["val"]}, "hyperparameter_space: learn_from"),
        ({"precision": ["bfloat16"]}, "hyperparameter_space: precision"),
        ({"bins": [10, 0]}, "bins: 0"),
    ):
        detector.hyperparameter_space = space
        with pytest.raises(SettingError, match=match):
            _ = detector.encoder


def test_many_features_are_worked_on_in_parts(network, fit_loader, test_images, monkeypatch):
    from openood_adascale.integrations.pytorch_ood import features as module

    detector = integration.AdaSCALE(network).fit(fit_loader)
    features = detector.encoder(test_images)
    want = detector.predict_features(features)
    monkeypatch.setattr(module, "_BLOCK", 5 * 129)
    torch.testing.assert_close(detector.predict_features(features.clone()), want, rtol=0, atol=0)
    features[21, 3] = torch.nan
    with pytest.raises(NotFinite, match="number 21"):
        detector.predict_features(features)


def test_an_encoder_makes_one_pass(network, test_images):
    assert passes(lambda: integration.LTS(network).encoder(test_images)) == 24 + HEAD
    assert passes(lambda: integration.AdaSCALE(network).encoder(make_images(24, 9))) == 2 * 24 + HEAD

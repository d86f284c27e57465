"""Every method of the registry as a detector of pytorch-ood: sign, labels, errors, settings, features."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref

import pytest
import torch
from networks import Net, TinyNet, known_and_unknown, make_images, make_loader
from torch import nn
from torch.nn.utils import parametrizations

pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")

import pytorch_ood.detector as theirs
from pytorch_ood.api import FeaturesDetector, ModelNotSetException, RequiresFittingException
from pytorch_ood.utils import extract_features

from openood_adascale.detectors.base import Detector
from openood_adascale.detectors.registry import METHODS, Method
from openood_adascale.detectors.scale import LTSSettings
from openood_adascale.errors import NotFiniteError, SettingError
from openood_adascale.integrations import pytorch_ood as integration

NAMES = ["MSP", "Energy", "SCALE", "LTS", "BFAct", "OptFS", "AdaSCALE", "AdaSCALE_L"]
LINES = dict(zip(METHODS, NAMES, strict=True))
FITTED = ["BFAct", "OptFS", "AdaSCALE", "AdaSCALE_L"]
every_class = pytest.mark.parametrize("name", LINES.values())
fitted_classes = pytest.mark.parametrize("name", FITTED)


@pytest.mark.parametrize("line", METHODS)
def test_registry_method_scores_with_sign_of_pytorch_ood(network, line, test_images):
    kind, method = getattr(integration, LINES[line]), METHODS[line]
    assert issubclass(kind, FeaturesDetector)
    assert (kind.__name__, kind.__module__) == (LINES[line], integration.__name__)
    assert LINES[line] in integration.__all__
    assert kind.requires_fit == (LINES[line] in FITTED)
    loader = make_loader(make_images(50, 1))
    detector = kind(network)
    assert detector.fit(loader) is detector
    want = -method.detector(network, **method.defaults).fit(loader, progress=False).score(test_images)
    torch.testing.assert_close(detector.predict(test_images), want, rtol=0, atol=0)
    torch.testing.assert_close(detector(test_images), want, rtol=0, atol=0)


def test_added_registry_methods_are_detectors(network, monkeypatch, test_images):
    class Doubled(Detector):
        settings_class = LTSSettings
        default_sweep = {"percentile_list": [3, 4]}  # noqa: RUF012

        def score_statistics(self, statistics, settings, state):
            return statistics.prediction, 2 * statistics.logits.amax(1) + settings.percentile

    monkeypatch.setitem(METHODS, "doubled", Method("doubled", "Doubled", Doubled))
    monkeypatch.setitem(METHODS, "again", Method("again", "Doubled (7 %)", Doubled, {"percentile": 7}))
    with torch.no_grad():
        want = -2 * network(test_images).amax(1)
    torch.testing.assert_close(integration.Doubled(network)(test_images), want - 95)
    torch.testing.assert_close(integration.Doubled_7_(network)(test_images), want - 7)
    assert integration.Doubled.hyperparameter_space == {"percentile": [3, 4]}
    with pytest.raises(AttributeError, match="has no attribute 'Tripled'"):
        _ = integration.Tripled


@fitted_classes
def test_fit_leaves_out_images_with_negative_labels(network, name, fit_loader, test_images):
    kind = getattr(integration, name)
    images, labels = fit_loader.dataset.tensors
    want = kind(network).fit(make_loader(images[labels >= 0])).predict(test_images)
    everything = kind(network).fit(make_loader(images)).predict(test_images)
    assert not torch.allclose(want, everything, rtol=1e-3)
    for loader in (fit_loader, list(fit_loader), [{"data": x, "label": y} for x, y in fit_loader]):
        torch.testing.assert_close(kind(network).fit(loader)(test_images), want, rtol=1e-6, atol=0)
    detector = kind(network)
    features = detector.encoder(images)
    torch.testing.assert_close(detector.fit_features(features, labels)(test_images), want, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="y: 3 labels for 80 rows"):
        detector.fit_features(features, labels[:3])


@fitted_classes
def test_fit_without_id_images_raises(network, name):
    detector = getattr(integration, name)(network)
    images = make_images(20, 1)
    for loader in (known_and_unknown(images[:0], images), [(images, -torch.ones(20))], [images]):
        with pytest.raises(ValueError, match="none of its images is ID"):
            detector.fit(loader)
    with pytest.raises(ValueError, match="none of its images is ID"):
        detector.fit_features(detector.encoder(images), -torch.ones(20))
    with pytest.raises(RequiresFittingException):
        detector.predict(images)


@every_class
def test_missing_model_raises_until_it_is_set(network, name, fit_loader, test_images):
    kind = getattr(integration, name)
    empty = kind(None)
    assert empty.encoder is empty.device is empty.model is None
    for call in (
        lambda: empty.fit(fit_loader), lambda: empty.predict(test_images), lambda: empty(test_images),
        lambda: empty.fit_features(torch.rand(3, 64), torch.zeros(3)), lambda: empty.predict_features(torch.rand(3, 64)),
    ):  # fmt: skip
        with pytest.raises(ModelNotSetException):
            call()
    empty.model = network
    assert torch.equal(empty.fit(fit_loader)(test_images), kind(network).fit(fit_loader)(test_images))
    with pytest.raises(TypeError, match="network: int"):
        kind(3)


@fitted_classes
def test_unfitted_detector_raises(network, name, fit_loader, test_images):
    detector = getattr(integration, name)(network)
    features = detector.encoder(test_images)
    for call in (lambda: detector.predict(test_images), lambda: detector.predict_features(features)):
        with pytest.raises(RequiresFittingException, match=r"is not fitted: call fit\(loader\)"):
            call()
    detector.fit(fit_loader).predict_features(features)
    with torch.no_grad():
        network.fc.weight.mul_(1.5)
    with pytest.raises(RequiresFittingException, match=r"have been written or replaced"):
        detector.predict(test_images)
    detector.fit(fit_loader).predict(test_images)
    detector.model = TinyNet().eval()
    with pytest.raises(RequiresFittingException):
        detector.predict(test_images)


def test_settings_are_keywords_attributes_and_hyperparameters(network, fit_loader, test_images):
    detector = integration.AdaSCALE(network, percentile=(70, 80), lmbda=3).fit(fit_loader)
    assert (detector.lmbda, detector.get_hyperparameters()) == (3.0, {"percentile": (70.0, 80.0)})
    detector.percentile = [60, 85]  # needs no other fit
    want = integration.AdaSCALE(network, percentile=(60, 85), lmbda=3).fit(fit_loader)(test_images)
    assert torch.equal(detector(test_images), want)
    assert detector.set_hyperparameters(k1=2) is detector
    assert (detector.k1, detector.core.settings.k1, detector.settings.lmbda) == (2.0, 2.0, 3.0)
    with pytest.raises(RequiresFittingException):
        detector(test_images)
    with pytest.raises(ValueError, match=r"AdaSCALE: depth: 3 is not allowed; expected one of: variant, "):
        detector.set_hyperparameters(depth=3)
    with pytest.raises(SettingError, match="k1: -1"):
        detector.k1 = -1
    with pytest.raises(TypeError, match="unexpected keyword argument 'percentle'"):
        integration.AdaSCALE(network, percentle=(80, 85))
    without = integration.AdaSCALE(None, k1=7)
    without.model = network
    assert without.k1 == 7


def test_signatures_and_search_spaces_are_those_of_the_methods(network):
    signature = str(inspect.signature(integration.AdaSCALE))
    assert signature.startswith("(model, *, variant='A', percentile=(80.0, 85.0), k1=1.0, ")
    assert "variant='L'" in str(inspect.signature(integration.AdaSCALE_L))
    assert integration.AdaSCALE_L(network).variant == "L"
    assert len(integration.AdaSCALE.hyperparameter_space["percentile"]) == 36
    assert integration.SCALE(network).hyperparameter_space == {"percentile": [65, 70, 75, 80, 85, 90, 95]}
    assert integration.LTS.hyperparameter_space == {}
    assert repr(integration.AdaSCALE_L(network)).startswith("AdaSCALE_L(Net, variant='L', percentile=(80.0")
    assert "larger is more OOD" in integration.LTS.__doc__


@every_class
def test_copies_and_pickles_score_alike(network, name, fit_loader, test_images):
    detector = getattr(integration, name)(network).fit(fit_loader)
    want = detector.predict_features(detector.encoder(test_images))
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert other.model is not network
        torch.testing.assert_close(other(test_images), detector(test_images), rtol=0, atol=0)
        torch.testing.assert_close(other.predict_features(other.encoder(test_images)), want, rtol=0, atol=0)


def test_to_moves_the_network(network):
    detector = integration.AdaSCALE(network)
    assert detector.device == torch.device("cpu")
    assert detector.to("meta") is detector
    assert detector.model is network
    assert detector.device == network.fc.weight.device == torch.device("meta")


def test_network_is_left_as_it_was_and_not_kept_alive(network, fit_loader, test_images):
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    detector = integration.AdaSCALE(network).fit(fit_loader)
    with torch.no_grad():
        detector(test_images)
        detector.predict_features(detector.encoder(test_images))
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    alone = integration.AdaSCALE(Net().eval())
    alone.encoder(test_images)
    gone = weakref.ref(alone.model)
    del alone
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", ["LTS", "OptFS", "AdaSCALE"])
def test_head_whose_weight_is_no_parameter(network, name, fit_loader, test_images):
    def scores(head):
        network.fc = head
        detector = getattr(integration, name)(network).fit(fit_loader)
        return torch.stack([detector(test_images), detector.predict_features(detector.encoder(test_images))])

    head, plain = parametrizations.weight_norm(nn.Linear(64, 5)), nn.Linear(64, 5)
    with torch.no_grad():
        head.parametrizations.weight.original0.mul_(1.5)
    plain.load_state_dict({"weight": head.weight.detach(), "bias": head.bias.detach()})
    torch.testing.assert_close(scores(head), scores(plain), rtol=1e-5, atol=1e-6)


# Features.


@every_class
def test_features_give_the_scores_of_images(network, name, fit_loader, test_images):
    kind = getattr(integration, name)
    want = kind(network).fit(fit_loader).predict(test_images)
    detector = kind(network)
    features, labels = extract_features(fit_loader, detector.encoder, "cpu")
    detector.fit_features(features, labels)
    features = detector.encoder(test_images)
    torch.testing.assert_close(detector.predict_features(features), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(detector.predict(test_images), want, rtol=1e-5, atol=1e-6)
    assert detector.predict_features(features[:0]).shape == (0,)
    assert features.shape == (24, 129 if "AdaSCALE" in name else 64)
    with torch.no_grad():
        torch.testing.assert_close(features[:, :64], network.features(test_images))


def test_features_of_several_perturbations_serve_each_setting(network, fit_loader, test_images):
    detector = integration.AdaSCALE(network)
    detector.hyperparameter_space = {"epsilon": [0.5, 0.1], "pixels": ["trivial", "all"]}
    features = detector.encoder(test_images)
    assert features.shape == (24, 64 + 4 * 65)
    for epsilon, pixels in ((0.1, "all"), (0.5, "trivial"), (0.1, "trivial")):
        detector.set_hyperparameters(epsilon=epsilon, pixels=pixels).fit(fit_loader)
        want = integration.AdaSCALE(network, epsilon=epsilon, pixels=pixels).fit(fit_loader)(test_images)
        torch.testing.assert_close(detector.predict_features(features), want, rtol=1e-5, atol=0)
    detector.set_hyperparameters(epsilon=0.25).fit(fit_loader)
    for given in (features, features[:, :64]):
        with pytest.raises(ValueError, match=r"epsilon=0\.25.* are missing"):
            detector.predict_features(given)


def test_invalid_features_raise(network, fit_loader):
    detector = integration.BFAct(network)
    with pytest.raises(RuntimeError, match="the head of Net is not known before an image has gone through"):
        detector.fit_features(torch.rand(4, 64), torch.zeros(4))
    detector.fit(fit_loader)
    for shape in ((4, 63), (4, 65), (4, 64, 1), (4, 32)):
        with pytest.raises(ValueError, match=r"features: shape .* expected \(N, 64\)"):
            detector.predict_features(torch.rand(shape))
    with pytest.raises(TypeError, match=r"features: torch\.int64"):
        detector.predict_features(torch.ones(4, 64, dtype=torch.int64))
    features = torch.rand(4, 64)
    features[2, 5] = torch.inf
    with pytest.raises(NotFiniteError, match=r"features: NaN or infinity for 1 image.*number 2"):
        detector.predict_features(features)


# Methods that pytorch-ood has, too.


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("name", "settings", "their"),
    [
        ("MSP", {}, lambda net: theirs.MaxSoftmax(net)),
        ("Energy", {}, lambda net: theirs.EnergyBased(net)),
        ("LTS", {}, lambda net: theirs.LTS(net.features, net.fc)),
        ("LTS", {"percentile": 90}, lambda net: theirs.LTS(net.features, net.fc, p=0.1)),
        ("SCALE", {}, lambda net: theirs.SCALE(net.maps, net.from_maps, 0.85)),
        ("SCALE", {"percentile": 65}, lambda net: theirs.SCALE(net.maps, net.from_maps, 0.65)),
    ],
)
def test_scores_agree_with_pytorch_ood(network, name, settings, their, signed, test_images):
    if signed:
        network.features.append(nn.LayerNorm(64))
    with torch.no_grad():
        want = their(network).predict(test_images).double()
    got = getattr(integration, name)(network, **settings).predict(test_images).double()
    if name == "SCALE" and signed:
        # pytorch-ood sums activations, this package and OpenOOD their positive parts.
        assert (got - want).abs().median() > 0.1
    else:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)

"""Every method of the registry as a detector of pytorch-ood's: its sign, its labels, its errors, its settings."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
import types
import warnings

import pytest
import torch
from pytorch_ood_networks import SEEN, known_and_unknown, passes
from tiny import HEAD, TinyNet, make_images, make_loader
from torch import nn

pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")

from pytorch_ood.api import Detector, FeaturesDetector, ModelNotSetException, RequiresFittingException

from openood_adascale.detectors.registry import METHODS, Method
from openood_adascale.errors import SettingError
from openood_adascale.integrations import pytorch_ood as integration

LINES = dict(
    zip(METHODS, ["MSP", "Energy", "SCALE", "LTS", "BFAct", "OptFS", "AdaSCALE", "AdaSCALE_L"], strict=True)
)
LEARNING = ["BFAct", "OptFS", "AdaSCALE", "AdaSCALE_L"]


def ours(name, network):
    method = METHODS[name]
    return method.detector(network, **method.defaults)


@pytest.mark.parametrize("name", METHODS)
def test_every_line_of_the_registry_is_a_detector(network, name, test_images):
    kind = getattr(integration, LINES[name])
    assert issubclass(kind, FeaturesDetector)
    assert kind.__name__ == LINES[name] in integration.__all__
    assert kind.__module__ == "openood_adascale.integrations.pytorch_ood"
    loader = make_loader(make_images(50, 1))
    detector = kind(network)
    assert detector.fit(loader) is detector
    want = ours(name, network).fit(loader).score(test_images)
    torch.testing.assert_close(detector.predict(test_images), -want, rtol=0, atol=0)
    torch.testing.assert_close(detector(test_images), -want, rtol=0, atol=0)
    assert kind.requires_fit == (LINES[name] in LEARNING)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", LEARNING)
def test_images_with_negative_labels_are_left_out_of_fit(network, name, fit_loader, test_images, shared):
    images, labels = fit_loader.dataset.tensors
    loader = fit_loader if shared else list(fit_loader)
    got = getattr(integration, name)(network).fit(loader).predict(test_images)
    kind = getattr(integration, name)
    want = kind(network).fit(make_loader(images[labels >= 0])).predict(test_images)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    everything = kind(network).fit(make_loader(images)).predict(test_images)
    assert not torch.allclose(got, everything, rtol=1e-3)


def test_the_network_does_not_see_them_where_nothing_is_shared(network, fit_loader):
    detector = integration.BFAct(network)
    assert passes(lambda: detector.fit(list(fit_loader))) == 50 + HEAD


def test_one_pass_fits_all_methods(network, fit_loader):
    # Those first that need most: a gradient is not kept.
    detectors = [getattr(integration, name)(network) for name in reversed(LEARNING)]
    count = passes(lambda: [detector.fit(fit_loader) for detector in detectors])
    assert count == 80 * 2 + HEAD  # images and perturbed images


@pytest.mark.parametrize("name", LEARNING)
def test_no_in_distribution_image(network, name):
    detector = getattr(integration, name)(network)
    images = make_images(20, 1)
    for loader in (known_and_unknown(images[:0], images), [(images, -torch.ones(20))], [images]):
        with pytest.raises(ValueError, match="no image of it is in-distribution"):
            detector.fit(loader)
    features = detector.encoder(images)
    with pytest.raises(ValueError, match="no image of it is in-distribution"):
        detector.fit_features(features, -torch.ones(20))
    with pytest.raises(RequiresFittingException):
        detector.predict(images)


def test_what_learns_nothing_looks_at_nothing(network):
    def never():
        raise AssertionError("it was looked at")
        yield

    assert passes(lambda: integration.LTS(network).fit(never()).fit_features(None, None)) == 0


@pytest.mark.parametrize("name", LINES.values())
def test_errors_of_pytorch_ood(network, name, fit_loader, test_images):
    kind = getattr(integration, name)
    nothing = kind(None)
    assert nothing.encoder is nothing.device is None
    for call in (
        lambda: nothing.fit(fit_loader), lambda: nothing.predict(test_images), lambda: nothing(test_images),
        lambda: nothing.fit_features(torch.rand(3, 64), torch.zeros(3)), lambda: nothing.predict_features(torch.rand(3, 64)),
    ):  # fmt: skip
        with pytest.raises(ModelNotSetException):
            call()
    nothing.model = network
    assert torch.equal(nothing.fit(fit_loader)(test_images), kind(network).fit(fit_loader)(test_images))
    with pytest.raises(TypeError, match="network: int"):
        kind(3)


@pytest.mark.parametrize("name", LEARNING)
def test_fitting_is_required(network, name, fit_loader, test_images):
    detector = getattr(integration, name)(network)
    features = detector.encoder(test_images)
    for call in (lambda: detector.predict(test_images), lambda: detector.predict_features(features)):
        with pytest.raises(RequiresFittingException, match="You have to call fit"):
            call()
    detector.fit(fit_loader)
    detector.predict_features(features)
    with torch.no_grad():
        network.fc.weight.mul_(1.5)
    with pytest.raises(RequiresFittingException, match=r"weights are not those .*; call fit\(loader\) again"):
        detector.predict(test_images)
    detector.fit(fit_loader).predict(test_images)
    detector.model = TinyNet().eval()
    with pytest.raises(RequiresFittingException):
        detector.predict(test_images)


def test_settings_that_were_learnt_with_ask_for_another_fit(network, fit_loader, test_images):
    detector = integration.AdaSCALE(network).fit(fit_loader)
    detector.percentile = (60, 85)
    assert detector.settings.percentile == (60.0, 85.0)
    detector.predict(test_images)
    detector.k2 = 20
    with pytest.raises(
        RequiresFittingException, match=r"k2 is 20\.0 and was 5\.0 .*call fit\(loader\) again"
    ):
        detector.predict(test_images)


def test_settings_are_attributes_and_hyperparameters(network):
    detector = integration.AdaSCALE(network, percentile=(70, 80), lmbda=3)
    assert (detector.lmbda, detector.get_hyperparameters()) == (3.0, {"percentile": (70.0, 80.0)})
    assert detector.set_hyperparameters(percentile=[60, 65], k1=2) is detector
    assert (detector.percentile, detector.k1, detector.core.settings.k1) == ((60.0, 65.0), 2.0, 2.0)
    with pytest.raises(
        ValueError, match="AdaSCALE: depth: 3 is not allowed; expected a setting that it has: variant, "
    ):
        detector.set_hyperparameters(depth=3)
    with pytest.raises(SettingError, match="k1: -1"):
        detector.k1 = -1
    with pytest.raises(SettingError, match="AdaSCALE: depth"):
        integration.AdaSCALE(network, depth=3)
    with pytest.raises(TypeError, match=r"settings: .* AdaSCALE takes AdaSCALESettings"):
        integration.AdaSCALE(None, integration.LTS(None).settings)
    assert integration.AdaSCALE_L(network).variant == "L"
    other = integration.AdaSCALE(TinyNet().eval(), detector.settings)
    assert other.settings == detector.settings
    other.model = network
    assert other.settings == detector.settings
    assert "lmbda=10.0" in str(inspect.signature(integration.AdaSCALE))
    assert "variant='L'" in str(inspect.signature(integration.AdaSCALE_L))


def test_search_spaces_are_data(network):
    space = {85: [60, 85], 90: [85, 90]}
    found = integration.AdaSCALE.hyperparameter_space
    assert list(found) == ["percentile"]
    assert all(pair in found["percentile"] for pair in space.values())
    assert len(found["percentile"]) == 36
    assert integration.SCALE(network).hyperparameter_space == {"percentile": [65, 70, 75, 80, 85, 90, 95]}
    assert integration.LTS.hyperparameter_space == {}


def test_a_repr_says_what_it_is(network, fit_loader):
    detector = integration.AdaSCALE_L(network)
    assert repr(detector).startswith("AdaSCALE_L(Net, variant='L', percentile=(80.0, 85.0), ")
    assert repr(detector.fit(fit_loader)).endswith("), fitted")
    assert repr(integration.LTS(None)).startswith("LTS(None, ")
    assert "larger is more out-of-distribution" in integration.LTS.__doc__


def test_a_fraction_for_a_percentile_is_doubted(network):
    with pytest.warns(UserWarning, match=r"percentile: 0\.85 is in percent here"):
        integration.SCALE(network, percentile=0.85)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = integration.SCALE(network)
        integration.OptFS(network)
    with pytest.warns(UserWarning, match="in percent here"):
        detector.set_hyperparameters(percentile=0.9)


def test_devices(network, fit_loader, test_images):
    detector = integration.AdaSCALE(network).fit(fit_loader)
    want = detector(test_images)
    assert detector.device == torch.device("cpu")
    assert detector.to("cpu") is detector
    assert detector.model is network
    torch.testing.assert_close(detector(test_images), want, rtol=0, atol=0)
    detector.to("meta")
    assert detector.device == network.fc.weight.device == torch.device("meta")


@pytest.mark.parametrize("name", LINES.values())
def test_copies_and_pickles(network, name, fit_loader, test_images):
    detector = getattr(integration, name)(network).fit(fit_loader)
    want = detector.predict_features(detector.encoder(test_images))
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert other.model is not network
        torch.testing.assert_close(other(test_images), detector(test_images), rtol=0, atol=0)
        torch.testing.assert_close(other.predict_features(other.encoder(test_images)), want, rtol=0, atol=0)


def test_the_network_is_left_as_it_was(network, fit_loader, test_images):
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    detector = integration.AdaSCALE(network).fit(list(fit_loader))
    with torch.no_grad():
        in_training = detector(test_images)
        detector.predict_features(detector.encoder(test_images))
    assert network.training
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    torch.testing.assert_close(integration.AdaSCALE(network.eval()).fit(fit_loader)(test_images), in_training)


def test_bad_images(network, fit_loader):
    detector = integration.AdaSCALE(network).fit(fit_loader)
    with pytest.raises(TypeError, match=r"images: torch\.uint8"):
        detector.predict(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    images = make_images(3, 1)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="images: NaN or infinity for 1 image"):
        detector.predict(images)
    with pytest.raises(ValueError, match="no linear head"):
        integration.LTS(nn.Sequential(network, nn.Softmax(1))).predict(make_images(3, 1))


def test_a_new_line_of_the_registry_is_a_detector(network, monkeypatch, test_images):
    from openood_adascale.detectors.base import Detector as OurDetector
    from openood_adascale.detectors.lts import LTSSettings

    class Doubled(OurDetector):
        settings_class = LTSSettings
        default_sweep = {"percentile_list": [3, 4]}  # noqa: RUF012

        def judge(self, evidence, settings, state):
            score, pred = evidence.logits.max(1)
            return pred, 2 * score + settings.percentile

    module = types.ModuleType("openood_adascale.detectors.doubled")
    module.Doubled = Doubled
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(METHODS, "doubled", Method("doubled", "Doubled", "doubled:Doubled"))
    monkeypatch.setitem(
        METHODS, "again", Method("again", "Doubled (7 %)", "doubled:Doubled", {"percentile": 7})
    )
    assert {"Doubled", "Doubled_7_"} <= {*integration.__all__}
    with torch.no_grad():
        logits = network(test_images).max(1).values
    torch.testing.assert_close(integration.Doubled(network)(test_images), -(2 * logits + 95))
    torch.testing.assert_close(integration.Doubled_7_(network)(test_images), -(2 * logits + 7))
    assert integration.Doubled.hyperparameter_space == {"percentile": [3, 4]}
    assert integration.Doubled is integration.Doubled
    with pytest.raises(AttributeError, match="has no attribute 'Tripled'"):
        _ = integration.Tripled


def test_scores_are_energies_with_pytorch_oods_sign(network, test_images):
    """An image whose logits are larger is less out-of-distribution."""
    before = integration.Energy(network)(test_images)
    with torch.no_grad():
        network.fc.bias.add_(1)
    torch.testing.assert_close(integration.Energy(network)(test_images), before - 1)


def test_nothing_of_pytorch_oods_is_looked_at_before(network):
    assert not SEEN
    assert isinstance(integration.MSP(network), Detector)
    assert not SEEN

"""pytorch-ood's detectors in `evaluate`: their own scores with the sign turned, from stored activations where these do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_ood_benchmark import by_itself, same_scores
from pytorch_ood_networks import SEEN, Net
from sklearn.metrics import roc_auc_score
from tiny import HEAD, make_images

pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")

import pytorch_ood.detector as theirs
from pytorch_ood.api import Detector, RequiresFittingException

import openood_adascale
from openood_adascale import Benchmark, evaluate
from openood_adascale.errors import SettingError
from openood_adascale.evidence.sharing import forget
from openood_adascale.integrations.pytorch_ood import LTS, adapt

ON_LOGITS = {
    "MaxSoftmax": theirs.MaxSoftmax, "Energy": theirs.EnergyBased, "Entropy": theirs.Entropy, "MaxLogit": theirs.MaxLogit,
    "GEN": theirs.GEN, "KLMatching": theirs.KLMatching, "TemperatureScaling": theirs.TemperatureScaling,
    "OpenMax": theirs.OpenMax, "WeightedEBO": lambda net: theirs.WeightedEBO(net, torch.ones(5)),
    "KNN on logits": lambda net: theirs.KNN(net, k=20),
}  # fmt: skip
ON_ACTIVATIONS = {
    "KNN": lambda net: theirs.KNN(net.features, k=20),
    "ViM": lambda net: theirs.ViM(net.features, 16, net.fc.weight, net.fc.bias),
    "DICE": lambda net: theirs.DICE(net.features, net.fc.weight, net.fc.bias, 0.7),
    "GMM": lambda net: theirs.GMM(net.features, reg=1e-2),
    "Mahalanobis": lambda net: theirs.Mahalanobis(net.features),
    "SHE": lambda net: theirs.SHE(net.features, net.fc),
    "NNGuide": lambda net: theirs.NNGuide(net.features, net.fc),
    "fDBD": lambda net: theirs.fDBD(net.features, net.fc),
    "NCI": lambda net: theirs.NCI(net.features, net.fc),
    "LTS": lambda net: theirs.LTS(net.features, net.fc),
    "SCALE": lambda net: theirs.SCALE(net.maps, net.from_maps, 0.85),
    "ASH": lambda net: theirs.ASH(net.maps, net.from_maps),
    "VRA": lambda net: theirs.VRA(net.maps, net.from_maps),
}
ON_IMAGES = {
    "ODIN": (lambda net: theirs.ODIN(net), "ODIN works on images"),
    "MahalanobisODIN": (lambda net: theirs.MahalanobisODIN(net.features), "MahalanobisODIN works on images"),
    "GradNorm": (lambda net: theirs.GradNorm(net), "GradNorm works on images"),
    "SCALE inside": (
        lambda net: theirs.SCALE(net.early_maps, net.from_early_maps, 0.85),
        "predict_feature_maps is given neither the activations of the network's last layer but one nor its logits",
    ),
    "ReAct inside": (
        lambda net: theirs.ReAct(net.early_maps, net.from_early_maps),
        "its fit does more than to call fit_feature_maps once",
    ),
}


@pytest.fixture
def network(trained):
    SEEN.clear()
    return trained[0]


@pytest.mark.parametrize("name", [*ON_LOGITS, *ON_ACTIVATIONS])
def test_from_stored_activations(network, data, name):
    make = {**ON_LOGITS, **ON_ACTIVATIONS}[name]
    want = by_itself(make(network), data)
    adapted = adapt(make(network), network)
    methods = {
        "LTS": openood_adascale.LTS(network),
        "theirs": adapted,
        "BFAct": openood_adascale.BFAct(network),
    }
    SEEN.clear()
    results = evaluate(methods, data, progress=False)
    assert adapted.reasons == []
    same_scores(results["theirs"].scores, want, rtol=2e-4)
    # One pass over all images, and the few that both ways are tried with.
    images = 230 + 60 + 40 + 40
    tried = 16 * (2 * 3 + (4 if adapted.detector.requires_fit else 0))
    assert images <= sum(SEEN) <= images + tried + 2 * HEAD
    table = results["theirs"].table
    assert table["ACC"].iloc[0] == results["LTS"].table["ACC"].iloc[0]
    labels = np.r_[np.zeros(60), np.ones(40)]
    known_and_far = -np.r_[want["id"], want["far"]]
    assert table.loc["far", "AUROC"] == pytest.approx(100 * roc_auc_score(labels, known_and_far), abs=0.2)


@pytest.mark.parametrize("name", ON_IMAGES)
def test_on_images_as_they_are(network, data, name):
    make, reason = ON_IMAGES[name]
    want = by_itself(make(network), data)
    adapted = adapt(make(network), network)
    found = evaluate({"theirs": adapted, "MSP": openood_adascale.MSP(network)}, data, progress=False)[
        "theirs"
    ]
    same_scores(found.scores, want, rtol=1e-6)
    assert reason in adapted.reasons
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("name", ["Energy", "KNN"])
def test_where_nothing_is_shared(network, data, name):
    make = {**ON_LOGITS, **ON_ACTIVATIONS}[name]
    want = by_itself(make(network), data)
    for store, loaders in ((False, data), (None, listed(data))):
        adapted = adapt(make(network), network)
        same_scores(evaluate(adapted, loaders, progress=False, store=store).scores, want, rtol=1e-6)
        assert adapted.reasons == ["the images, or what the network makes of them, cannot be stored"]


def listed(data):
    """The same images in loaders of somebody's own, one of which yields OpenOOD's dicts."""
    dicts = [{"data": images, "label": labels} for images, labels in data.test]
    train = [{"data": images, "label": labels} for images, labels in data.train]
    return Benchmark(
        dicts, {"near": list(data.near["near"])}, {"far": list(data.far["far"])}, list(data.val), None, train
    )


def test_what_is_fitted_is_not_fitted_anew(network, data):
    fitted = theirs.KNN(network.features, k=3).to("cpu").fit(data.val)
    want = by_itself_fitted = {
        name: -fitted.predict(loader.dataset.tensors[0]).double().numpy() for name, loader in data.far.items()
    }
    data.train = None
    found = evaluate(adapt(fitted, network), data, progress=False)
    same_scores({"far": found.scores["far"]}, by_itself_fitted, rtol=1e-5)
    new = theirs.KNN(network.features, k=3)
    forget()
    SEEN.clear()
    beside = {"LTS": openood_adascale.LTS(network), "KNN": adapt(new, network)}
    with pytest.raises(ValueError, match=r"benchmark\.train: None is not allowed; the method needs"):
        evaluate(beside, data, progress=False)
    assert sum(SEEN) <= 16  # some images tell that it is not fitted
    with pytest.raises(ValueError, match=r"benchmark\.train: None is not allowed; KNN needs these images"):
        adapt(new, network).setup(network, data.known, data.ood)
    with pytest.raises(RequiresFittingException):
        new.predict(make_images(2, 1))
    found = evaluate(adapt(new, network, learn_from="val"), data, progress=False)
    same_scores({"far": found.scores["far"]}, want, rtol=1e-5)


def test_its_space_is_searched_when_asked(network, data):
    def knn():
        knn = theirs.KNN(network.features, k=20)
        knn.hyperparameter_space = {"k": [1, 5, 100]}
        return knn

    assert evaluate(adapt(knn(), network), data, progress=False).search is None
    assert evaluate(adapt(knn(), network, search=True), data, search=False, progress=False).search is None
    adapted = adapt(knn(), network, search=True)
    forget()
    SEEN.clear()
    found = evaluate(adapted, data, progress=False, known_accuracy=0)
    few = 16 * 3 * (4 + 2 * 3 + 3)  # each candidate is tried both ways
    assert sum(SEEN) <= 230 + 50 + 50 + 60 + 80 + few + 20
    want = []
    for k in (1, 5, 100):
        detector = theirs.KNN(network.features, k=k).to("cpu").fit(data.train)
        scores = [detector.predict(loader.dataset.tensors[0]).numpy() for loader in (data.val, data.ood_val)]
        want.append(100 * roc_auc_score(np.r_[np.zeros(50), np.ones(50)], np.concatenate(scores)))
    assert found.search["k"].tolist() == [1, 5, 100]
    np.testing.assert_allclose(found.search["auroc"], want, atol=0.05)
    assert adapted.detector.k == (1, 5, 100)[int(np.argmax(found.search["auroc"]))]
    assert adapted.hyperparam_search_done


def test_a_search_without_its_images_is_refused_before_any_pass(network, data):
    data.ood_val = None
    SEEN.clear()
    methods = {"LTS": openood_adascale.LTS(network), "GEN": adapt(theirs.GEN(network), network, search=True)}
    with pytest.raises(ValueError, match=r"benchmark\.ood_val: None is not allowed"):
        evaluate(methods, data, progress=False)
    assert not SEEN


def test_this_package_s_own_detectors_of_pytorch_ood_s_kind(network, data):
    want = evaluate(openood_adascale.LTS(network), data, progress=False)
    found = evaluate(adapt(LTS(network), network), data, progress=False)
    same_scores(found.scores, want.scores, rtol=1e-5)


def test_arguments(network, data):
    energy = theirs.EnergyBased(network)
    with pytest.raises(TypeError, match="detector: Net is not a detector of pytorch-ood's"):
        adapt(network, network)
    with pytest.raises(TypeError, match=r"network: int is not a torch\.nn\.Module"):
        adapt(energy, 3)
    with pytest.raises(SettingError, match="learn_from: 'test'"):
        adapt(energy, network, learn_from="test")
    with pytest.raises(TypeError, match="network: this Net is not the one that Adapted has"):
        evaluate(adapt(energy, network), data, Net())
    assert repr(adapt(energy, network)) == "adapt(EnergyBased, Net)"


class Pixels(Detector):
    def predict(self, x):
        return x.mean(1)


def test_scores_that_are_none_per_image(network, data):
    with pytest.raises(
        ValueError, match=r"Pixels: it gives shape \(16, 8, 8\) for 16 images; expected \(16,\)"
    ):
        evaluate(adapt(Pixels(), network), data, progress=False)

"""pytorch-ood's detectors in `evaluate`: their own scores with the sign turned round, from features if these give them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from helpers import IMAGES, assert_same_scores, scores_by_itself
from networks import HEAD, Net, images_seen
from sklearn.metrics import roc_auc_score

pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")

import pytorch_ood.detector as theirs
from pytorch_ood.api import Detector, RequiresFittingException

import openood_adascale
from openood_adascale import Benchmark, evaluate
from openood_adascale.errors import SettingError
from openood_adascale.integrations.pytorch_ood import AdaSCALE, adapt, penultimate_encoder

ON_LOGITS = {
    "MaxSoftmax": theirs.MaxSoftmax, "Energy": theirs.EnergyBased, "Entropy": theirs.Entropy, "MaxLogit": theirs.MaxLogit,
    "GEN": theirs.GEN, "KLMatching": theirs.KLMatching, "TemperatureScaling": theirs.TemperatureScaling,
    "OpenMax": theirs.OpenMax, "WeightedEBO": lambda net: theirs.WeightedEBO(net, torch.ones(5)),
}  # fmt: skip
ON_ACTIVATIONS = {
    "KNN": lambda net, encoder: theirs.KNN(encoder, k=20),
    "ViM": lambda net, encoder: theirs.ViM(encoder, 16, net.fc.weight, net.fc.bias),
    "DICE": lambda net, encoder: theirs.DICE(encoder, net.fc.weight, net.fc.bias, 0.7),
    "GMM": lambda net, encoder: theirs.GMM(encoder, reg=1e-2),
    "SHE": lambda net, encoder: theirs.SHE(encoder, net.fc),
    "NCI": lambda net, encoder: theirs.NCI(encoder, net.fc),
    "LTS": lambda net, encoder: theirs.LTS(encoder, net.fc),
}
TOTAL = sum(IMAGES.values()) - IMAGES["val"] - IMAGES["ood_val"]


class Doubled(theirs.MaxSoftmax):
    """Differs from pytorch-ood's own class on images only."""

    def predict(self, x):
        return 2 * super().predict(x)


ON_IMAGES = {
    "ODIN": theirs.ODIN,
    "GradNorm": theirs.GradNorm,
    "Mahalanobis with ODIN": lambda net: theirs.MahalanobisODIN(net.features),
    "ReAct": lambda net: theirs.ReAct(net.maps, net.from_maps),
    "ASH": lambda net: theirs.ASH(net.maps, net.from_maps),
    "encoder of the user's": lambda net: theirs.KNN(lambda x: 2 * net.features(x), k=5, normalize=False),
    "perturbed features": lambda net: theirs.KNN(AdaSCALE(net).encoder, k=5),
    "another network": lambda net: theirs.Entropy(other_network()),
    "subclass": Doubled,
    "method of this package": AdaSCALE,
}


def other_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return Net().eval()


@pytest.fixture
def network(trained):
    return trained[0]


@pytest.mark.parametrize("name", [*ON_LOGITS, *ON_ACTIVATIONS])
def test_features_give_the_detector_s_own_scores(network, data, name, tmp_path):
    if name in ON_LOGITS:
        own = ON_LOGITS[name](network)
        source, detectors = "logits", [ON_LOGITS[name](network)]
    else:
        own = ON_ACTIVATIONS[name](network, network.features)
        encoders = (penultimate_encoder(network), None)
        source, detectors = "activation", [ON_ACTIVATIONS[name](network, encoder) for encoder in encoders]
    want = scores_by_itself(own, data)
    for number, detector in enumerate(detectors):
        adapted = adapt(detector, network)
        assert adapted.source == source
        methods = {"LTS": openood_adascale.LTS(network), "theirs": adapted}
        results, run = {}, functools.partial(evaluate, methods, data, progress=False)
        # One pass for all methods.
        assert images_seen(lambda: results.update(run(cache_dir=tmp_path / str(number)))) <= TOTAL + 2 * HEAD  # noqa: B023
        assert_same_scores(results["theirs"].scores, want, rtol=2e-4)
        table = results["theirs"].table
        assert table["ACC"].iloc[0] == results["LTS"].table["ACC"].iloc[0]
        auroc = roc_auc_score(np.r_[np.zeros(60), np.ones(40)], -np.r_[want["id"], want["far"]])
        assert table.loc["far", "AUROC"] == pytest.approx(100 * auroc, abs=0.2)
        # Without a cache the scores are the same.
        found = evaluate(adapted, data, progress=False, cache_dir=False)
        assert_same_scores(found.scores, want, rtol=2e-4)


@pytest.mark.parametrize("first", ["GEN", "LTS"])
def test_methods_share_passes_without_a_cache(network, data, first, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    methods = {
        "GEN": adapt(theirs.GEN(network), network),
        "KNN": adapt(theirs.KNN(penultimate_encoder(network), k=20), network),
        "LTS": openood_adascale.LTS(network),
    }
    methods = {name: methods[name] for name in sorted(methods, key=lambda name: name != first)}
    if first == "GEN":
        del methods["LTS"]
    want = {name: evaluate(method, data, progress=False).scores for name, method in methods.items()}
    results = {}
    seen = images_seen(lambda: results.update(evaluate(methods, data, progress=False, cache_dir=False)))
    assert TOTAL - IMAGES["train"] <= seen <= TOTAL + 3 * HEAD
    for name in methods:
        assert_same_scores(results[name].scores, want[name], rtol=1e-6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ON_IMAGES)
def test_other_detectors_run_on_the_images(network, data, name, tmp_path):
    want = scores_by_itself(ON_IMAGES[name](network), data)
    adapted = adapt(ON_IMAGES[name](network), network)
    assert adapted.source == "images"
    methods = {"MSP": openood_adascale.MSP(network), "theirs": adapted}
    results = evaluate(methods, data, progress=False, cache_dir=tmp_path)
    assert_same_scores(results["theirs"].scores, want, rtol=1e-6)
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("on_images", [False, True])
def test_loaders_and_dicts_of_the_user_are_accepted(network, data, on_images):
    loaders = Benchmark(
        test=[{"data": images, "label": labels} for images, labels in data.test],
        near={"near": list(data.near["near"])},
        far={"far": list(data.far["far"])},
        train=[{"data": images, "label": labels} for images, labels in data.train],
    )
    want = scores_by_itself(theirs.KNN(network.features, k=20), data)
    detector = theirs.KNN(penultimate_encoder(network), k=20)
    found = evaluate(adapt(detector, network, on_images=on_images), loaders, progress=False)
    assert_same_scores(found.scores, want, rtol=1e-5)


def test_fit_split_chooses_the_images_to_fit_on(network, data):
    fitted = theirs.KNN(network.features, k=3).to("cpu").fit(data.val)
    want = scores_by_itself(fitted, data, fit=False)
    data.train = None
    for adapted in (
        adapt(fitted, network, fit_split=None),
        adapt(theirs.KNN(None, k=3), network, fit_split="val"),
    ):
        assert_same_scores(evaluate(adapted, data, progress=False).scores, want, rtol=1e-5)
    with pytest.raises(RequiresFittingException):
        evaluate(adapt(theirs.KNN(None, k=3), network, fit_split=None), data, progress=False)

    data.ood_val = None
    for missing, adapted in (
        ("train", adapt(theirs.KNN(None), network)),
        ("ood_val", adapt(theirs.GEN(network), network, search=True)),
    ):
        methods = {"LTS": openood_adascale.LTS(network), "theirs": adapted}

        def run(missing=missing, methods=methods):
            with pytest.raises(ValueError, match=rf"benchmark\.{missing}: None is not allowed"):
                evaluate(methods, data, progress=False)

        assert images_seen(run) == 0
    with pytest.raises(ValueError, match="none of its images is ID"):
        adapt(theirs.fDBD(None, network.fc), network).setup(
            network, {"train": [(data.val.dataset.tensors[0], -torch.ones(50))]}, {}
        )


@pytest.mark.parametrize("on_images", [False, True])
def test_hyperparameter_space_is_searched_if_asked(network, data, on_images):
    def knn(**keywords):
        detector = theirs.KNN(penultimate_encoder(network), k=20)
        detector.hyperparameter_space = {"k": [1, 5, 100]}
        return adapt(detector, network, on_images=on_images, **keywords)

    assert evaluate(knn(), data, progress=False).search_results is None
    assert evaluate(knn(search=True), data, search=False, progress=False).search_results is None
    want = []
    for k in (1, 5, 100):
        detector = theirs.KNN(network.features, k=k).to("cpu").fit(data.train)
        scores = [detector.predict(loader.dataset.tensors[0]).numpy() for loader in (data.val, data.ood_val)]
        want.append(100 * roc_auc_score(np.r_[np.zeros(50), np.ones(50)], np.concatenate(scores)))
    adapted, results = knn(search=True), []
    seen = images_seen(
        lambda: results.append(evaluate(adapted, data, progress=False, known_accuracy=0, cache_dir=False))
    )
    assert on_images or seen <= sum(IMAGES.values()) + HEAD
    (found,) = results
    assert found.search_results["k"].tolist() == [1, 5, 100]
    np.testing.assert_allclose(found.search_results["auroc"], want, atol=0.05)
    best = theirs.KNN(network.features, k=(1, 5, 100)[int(np.argmax(want))])
    assert adapted.detector.k == best.k
    assert_same_scores(found.scores, scores_by_itself(best, data), rtol=1e-5)


def test_network_without_linear_head_runs_on_images(network, data):
    softmax = torch.nn.Sequential(network, torch.nn.LogSoftmax(1)).eval()
    with pytest.raises(ValueError, match="no linear head"):
        evaluate(adapt(theirs.Entropy(softmax), softmax), data, progress=False)
    found = evaluate(adapt(theirs.Entropy(softmax), softmax, on_images=True), data, progress=False)
    assert_same_scores(found.scores, scores_by_itself(theirs.Entropy(network), data), rtol=1e-5)


def test_invalid_arguments_raise(network, data):
    energy = theirs.EnergyBased(network)
    with pytest.raises(TypeError, match="detector: Net is not a detector of pytorch-ood"):
        adapt(network, network)
    with pytest.raises(TypeError, match=r"network: int is not a torch\.nn\.Module"):
        adapt(energy, 3)
    with pytest.raises(SettingError, match="fit_split: 'test'"):
        adapt(energy, network, fit_split="test")
    with pytest.raises(TypeError, match="network: this Net is not the one that Adapted has"):
        evaluate(adapt(energy, network), data, other_network())


class Pixels(Detector):
    def predict(self, x):
        return x.mean(1)


def test_other_output_than_one_score_per_image_raises(network, data):
    told = r"Pixels: it returns shape \(16, 8, 8\) for 16 images; expected \(16,\)"
    with pytest.raises(ValueError, match=told):
        evaluate(adapt(Pixels(), network), data, progress=False)

"""pytorch-ood's detectors in `evaluate`: their own scores with the sign turned, from stored activations where these do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_images
from pytorch_ood_networks import SEEN, Net
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")
pytest.importorskip("sklearn")

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


@pytest.fixture(scope="module")
def trained():
    """A network that has learnt five kinds of images, each of a mean of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        means = torch.randn(5, 3, 1, 1)
        network = Net()
        images, labels = kinds(means, 200, 1)
        optimiser = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimiser.step()
    network.zero_grad(set_to_none=True)
    return network.eval(), means


def kinds(means, count, seed):
    labels = torch.arange(count) % 5
    return make_images(count, seed) * 0.3 + means[labels], labels


def loader_of(images, labels=None):
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    return DataLoader(TensorDataset(images, labels), batch_size=16)


@pytest.fixture
def network(trained):
    SEEN.clear()
    return trained[0]


@pytest.fixture
def data(trained):
    means = trained[1]
    images, labels = kinds(means, 200, 1)
    # Some images are out-of-distribution, and say so.
    train = torch.cat([images, make_images(30, 20, shift=3)]), torch.cat([labels, torch.full((30,), -1)])
    return Benchmark(
        test=loader_of(*kinds(means, 60, 2)),
        near={"near": loader_of(make_images(40, 5))},
        far={"far": loader_of(make_images(40, 6) * 3)},
        val=loader_of(*kinds(means, 50, 7)),
        ood_val=loader_of(make_images(50, 8)),
        train=loader_of(*train),
    )


def by_itself(detector, data, batch_size=16):
    """A detector's scores on the test images, as its own documentation has it called; the sign turned round."""
    detector.to("cpu")
    if detector.requires_fit:
        detector.fit(data.train)
    found = {}
    for name, loader in {"id": data.test, **data.near, **data.far}.items():
        images = loader.dataset.tensors[0].split(batch_size)
        found[name] = -torch.cat([detector.predict(batch).detach() for batch in images]).double().numpy()
    return found


def same_scores(got, want, rtol):
    for name, scores in want.items():
        np.testing.assert_allclose(
            got[name], scores, rtol=rtol, atol=rtol * np.abs(scores).max(), err_msg=name
        )


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
    assert images <= sum(SEEN) <= images + tried + 4
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


class Normalised(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return nn.functional.normalize(self.network.features(images))


class Doubling(theirs.MaxSoftmax):
    """Does something to the scores of images that it does not do to logits."""

    def predict(self, x):
        return 2 * super().predict(x)


class Brightness(theirs.EnergyBased):
    """Looks at images, too."""

    def predict(self, x):
        return super().predict(x + 0.01)


class Peeking(theirs.KNN):
    """Learns something of the images themselves."""

    def fit(self, data_loader):
        self.brightness = torch.cat([images for images, _ in data_loader]).mean()
        return super().fit(data_loader)


class Unlabelled(theirs.KNN):
    """Learns from the images of labels above 2 alone."""

    def fit(self, data_loader):
        kept = [(images[labels > 2], labels[labels > 2]) for images, labels in data_loader]
        return super().fit(kept)


FOUND_OUT = {
    "another feature": (lambda net: theirs.KNN(Normalised(net), k=5, normalize=False), "is given neither"),
    "another network": (lambda net: theirs.KNN(other_features(), k=5), "is given neither"),
    "double precision": (lambda net: theirs.LTS(lambda x: net.features(x).double(), in_double(net)), "is given neither"),
    "scores changed": (Doubling, "its predict does more than to call predict_logits once"),
    "images changed": (Brightness, "is given neither"),
    "images learnt from": (lambda net: Peeking(net.features, k=5), "its fit does more than to call fit_features"),
    "labels chosen": (lambda net: Unlabelled(net.features, k=5), "its fit gives fit_features other labels"),
}  # fmt: skip


def other_features():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return Net().eval().features


def in_double(network):
    head = nn.Linear(64, 5).double()
    head.load_state_dict(network.fc.state_dict())
    return head


@pytest.mark.parametrize("what", FOUND_OUT)
def test_what_needs_more_is_found_out(network, data, what):
    make, reason = FOUND_OUT[what]
    want = by_itself(make(network), data)
    adapted = adapt(make(network), network)
    found = evaluate({"MSP": openood_adascale.MSP(network), "theirs": adapted}, data, progress=False)[
        "theirs"
    ]
    same_scores(found.scores, want, rtol=1e-6)
    assert any(reason in told for told in adapted.reasons), adapted.reasons


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

"""What a detector of pytorch-ood's needs of images is found out, not believed: these look as if activations would do."""

from __future__ import annotations

import pytest
import torch
from pytorch_ood_benchmark import by_itself, same_scores
from pytorch_ood_networks import SEEN, Net
from torch import nn

pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")

import pytorch_ood.detector as theirs

import openood_adascale
from openood_adascale import evaluate
from openood_adascale.integrations.pytorch_ood import adapt


@pytest.fixture
def network(trained):
    SEEN.clear()
    return trained[0]


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

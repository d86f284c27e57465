"""pytorch-ood's GridSearch over this package's settings: one pass, and the candidates that a fresh detector each gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pytorch_ood_networks import passes
from sklearn.metrics import roc_auc_score
from tiny import HEAD, make_loader

pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")

from pytorch_ood.api import RequiresFittingException
from pytorch_ood.metrics import FPRAtTPR
from pytorch_ood.utils import GridSearch

import openood_adascale
from openood_adascale.integrations import pytorch_ood as integration

PAIRS = [[60, 65], [60, 99], [80, 85], [95, 99]]


def aurocs(kind, network, fit_loader, val_loader, space):
    """Of this package's own detectors, one made anew for each candidate and given the images themselves."""
    images, labels = fit_loader.dataset.tensors
    known = make_loader(images[labels >= 0])
    images, labels = val_loader.dataset.tensors
    found = []
    for values in itertools.product(*space.values()):
        detector = kind(network, **dict(zip(space, values, strict=True))).fit(known)
        found.append(roc_auc_score(labels.numpy() < 0, -detector.score(images).numpy()))
    return found


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("AdaSCALE", {"percentile": PAIRS[:2], "k1": [1, 30], "k2": [5, 60], "lmbda": [0, 10]}),
        ("AdaSCALE", {"epsilon": [0.5, 2], "o": [0.05, 0.5], "percentile": PAIRS[:2]}),
        ("AdaSCALE", {"variant": ["A", "L"], "num_samples": [10, None]}),
        ("SCALE", {"percentile": [65, 80, 95]}),
        ("LTS", {"percentile": [65, 80, 95]}),
        ("BFAct", {"percentile": [50, 95], "order": [1, 4]}),
        ("OptFS", {"bins": [5, 50], "percentile": [[0.1, 99.9], [5, 95]], "score": ["vanilla", "energy"]}),
    ],
)
def test_candidates_are_those_of_fresh_detectors(network, fit_loader, val_loader, name, space):
    detector = getattr(integration, name)(network)
    search = GridSearch(detector, fit_loader, val_loader, hyperparameter_space=space)
    best = search.run()
    want = aurocs(getattr(openood_adascale, name), network, fit_loader, val_loader, space)
    assert len({round(value, 4) for value in want}) > 1
    np.testing.assert_allclose([found["score"] for found in search.results_], want, atol=1e-3)
    assert search.best_score_ == max(found["score"] for found in search.results_)
    # It is left set and fitted, so that images are scored with the best.
    kept = detector.get_hyperparameters()
    assert all(
        kept[key] == (tuple(value) if isinstance(value, list) else value) for key, value in best.items()
    )
    images, labels = fit_loader.dataset.tensors
    fresh = getattr(openood_adascale, name)(network, **best).fit(make_loader(images[labels >= 0]))
    test = val_loader.dataset.tensors[0]
    torch.testing.assert_close(detector(test), -fresh.score(test), rtol=1e-5, atol=1e-6)


def test_a_search_costs_one_pass(network, fit_loader, val_loader):
    def searched(space=None):
        search = GridSearch(integration.AdaSCALE(network), fit_loader, val_loader, hyperparameter_space=space)
        search.run()
        assert len(search.results_) == (36 if space is None else 48)

    images = 50 + 75  # those with negative labels do not go through the network to fit
    assert passes(searched) == 2 * images + HEAD
    joint = {"percentile": PAIRS, "k1": [1, 5, 30], "lmbda": [0, 1, 10, 100]}
    assert passes(lambda: searched(joint)) == 2 * images + HEAD
    perturbed_twice = {
        "percentile": [*PAIRS, [70, 80], [70, 85]],
        "epsilon": [0.1, 0.5],
        "k2": [1, 5, 10, 20],
    }
    assert passes(lambda: searched(perturbed_twice)) == 3 * images + HEAD


def test_the_default_space_is_searched(network, val_loader):
    detector = integration.SCALE(network)
    search = GridSearch(detector, None, val_loader)
    search.run()
    assert [found["params"] for found in search.results_] == [
        {"percentile": value} for value in (65, 70, 75, 80, 85, 90, 95)
    ]
    with pytest.raises(ValueError, match="fit_loader is required"):
        GridSearch(integration.AdaSCALE(network), None, val_loader).run()
    with pytest.raises(ValueError, match="LTS has an empty hyperparameter_space"):
        GridSearch(integration.LTS(network), None, val_loader)


def test_another_metric(network, fit_loader, val_loader):
    detector = integration.AdaSCALE(network)
    search = GridSearch(
        detector, fit_loader, val_loader, {"percentile": PAIRS},
        metric=FPRAtTPR(0.8), metric_name="FPR80TPR", higher_is_better=False,
    )  # fmt: skip
    search.run()
    assert search.best_score_ == min(found["score"] for found in search.results_)


def test_a_search_does_not_leave_an_old_fit(network, fit_loader, val_loader):
    detector = integration.AdaSCALE(network)
    GridSearch(detector, fit_loader, val_loader, {"k1": [1, 2]}).run()
    detector.k1 = 40
    with pytest.raises(RequiresFittingException):
        detector(val_loader.dataset.tensors[0])


def test_scores_too_large_for_float32_are_searched(network, fit_loader, val_loader):
    """exp(r) of few kept activations overflows float32; pytorch-ood passes over candidates that are not finite."""
    with torch.no_grad():
        network.fc.weight.mul_(1e20)
        network.fc.bias.fill_(1e20)
    search = GridSearch(integration.AdaSCALE(network), fit_loader, val_loader, {"percentile": [[98, 99]]})
    assert search.run() == {"percentile": [98, 99]}
    assert integration.AdaSCALE(network).fit(fit_loader)(val_loader.dataset.tensors[0]).isfinite().all()

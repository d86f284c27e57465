"""This package's methods in pytorch-ood's benchmarks, metrics and grid search; nothing is downloaded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from networks import HEAD, images_seen, make_images, make_loader
from sklearn.metrics import roc_auc_score
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")

from pytorch_ood.benchmark import Benchmark
from pytorch_ood.detector import MaxSoftmax
from pytorch_ood.metrics import FPRAtTPR
from pytorch_ood.utils import GridSearch

import openood_adascale
from openood_adascale.errors import SettingError
from openood_adascale.integrations import pytorch_ood as integration
from openood_adascale.metrics import ood_metrics

NAMES = ["MSP", "Energy", "SCALE", "LTS", "BFAct", "OptFS", "AdaSCALE", "AdaSCALE_L"]
IN_OURS = {"AUROC": "AUROC", "FPR95TPR": "FPR@95", "AUPR-IN": "AUPR_IN", "AUPR-OUT": "AUPR_OUT"}
BATCHES = {"batch_size": 16}
PAIRS = [[60, 65], [60, 99], [80, 85], [95, 99]]


class Local(Benchmark):
    """A benchmark of images in memory."""

    ood_names = ("near", "far")

    def __init__(self):
        self.known = make_images(40, 3)
        self.unknown = {"near": make_images(30, 4, shift=0.5), "far": make_images(35, 5, shift=3)}

    def train_set(self):
        return TensorDataset(make_images(60, 1), torch.arange(60) % 5)

    def test_sets(self, known=True, unknown=True):
        of_known = TensorDataset(self.known, torch.arange(40) % 5)
        return [
            ConcatDataset([of_known, TensorDataset(images, torch.full((len(images),), -1))])
            for images in self.unknown.values()
        ]


@pytest.fixture
def fitted(network):
    loader = DataLoader(Local().train_set(), batch_size=16)
    return {name: getattr(integration, name)(network).fit(loader) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_gives_the_metrics_of_this_package(fitted, name):
    benchmark = Local()
    results = benchmark.evaluate(fitted[name], loader_kwargs=BATCHES)
    core = fitted[name].core
    id_scores = core.score(benchmark.known).numpy()
    for result, (dataset, images) in zip(results, benchmark.unknown.items(), strict=True):
        assert result["Dataset"] == dataset
        want = ood_metrics(id_scores, core.score(images).numpy())
        for theirs, ours in IN_OURS.items():
            np.testing.assert_allclose(100 * result[theirs], want[ours], atol=0.1, err_msg=theirs)


def test_detectors_share_the_passes_of_a_benchmark(network, fitted):
    results = []

    def evaluate(detectors):
        results[:] = Local().evaluate(detectors, loader_kwargs=BATCHES)

    images = 2 * 40 + 30 + 35
    several = list(fitted.values())
    assert images_seen(lambda: evaluate(several)) == 3 * images  # plain, and with perturbed inputs
    assert images_seen(lambda: evaluate(several[:6])) == images
    assert images_seen(lambda: evaluate(several[6:])) == 2 * images
    evaluate([MaxSoftmax(network), fitted["MSP"]])
    theirs, ours = ([r["AUROC"] for r in results if r["Detector"] == name] for name in ("MaxSoftmax", "MSP"))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_cache_files_of_a_benchmark_differ_by_perturbation(fitted, tmp_path):
    keep = {"loader_kwargs": BATCHES, "cache_dir": str(tmp_path), "cache_key": "network 1"}

    def evaluate(name):
        with pytest.warns(UserWarning, match="cache reuse is keyed"):
            return Local().evaluate(fitted[name], **keep)

    evaluate("SCALE")
    assert images_seen(lambda: evaluate("LTS")) == 0
    assert images_seen(lambda: evaluate("AdaSCALE")) > 0
    assert images_seen(lambda: evaluate("AdaSCALE_L")) == 0


# Grid search.


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("AdaSCALE", {"percentile": PAIRS[:2], "k1": [1, 30], "k2": [5, 60], "lmbda": [0, 10]}),
        ("AdaSCALE", {"epsilon": [0.5, 2], "o": [0.05, 0.5], "percentile": PAIRS[:2]}),
        ("SCALE", {"percentile": [65, 80, 95]}),
        ("BFAct", {"percentile": [50, 95], "order": [1, 4]}),
        ("OptFS", {"bins": [5, 50], "percentile": [[0.1, 99.9], [5, 95]], "score": ["vanilla", "energy"]}),
    ],
)
def test_candidates_score_as_detectors_made_for_them(network, fit_loader, val_loader, name, space):
    detector = getattr(integration, name)(network)
    search = GridSearch(detector, fit_loader, val_loader, hyperparameter_space=space)
    best = search.run()
    images, labels = fit_loader.dataset.tensors
    id_loader = make_loader(images[labels >= 0])
    test, labels = val_loader.dataset.tensors

    def scores(**settings):
        return getattr(openood_adascale, name)(network, **settings).fit(id_loader, progress=False).score(test)

    tried = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    want = [roc_auc_score(labels.numpy() < 0, -scores(**candidate).numpy()) for candidate in tried]
    assert len({round(value, 4) for value in want}) > 1
    np.testing.assert_allclose([found["score"] for found in search.results_], want, atol=1e-3)
    # The detector is left fitted with the best candidate.
    torch.testing.assert_close(detector(test), -scores(**best), rtol=1e-5, atol=1e-6)


def test_grid_search_costs_one_pass(network, fit_loader, val_loader):
    def search(space=None):
        found = GridSearch(integration.AdaSCALE(network), fit_loader, val_loader, hyperparameter_space=space)
        found.run()
        assert len(found.results_) == (36 if space is None else 16)

    images = 50 + 75  # pytorch-ood passes over OOD images to fit
    assert images_seen(search) == 2 * images + HEAD
    assert images_seen(lambda: search({"percentile": PAIRS, "lmbda": [0, 1, 10, 100]})) == 2 * images + HEAD
    two = {"percentile": PAIRS, "epsilon": [0.1, 0.5], "k2": [5, 20]}
    assert images_seen(lambda: search(two)) == 3 * images + HEAD


def test_grid_search_with_default_space_and_other_metric(network, fit_loader, val_loader):
    search = GridSearch(
        integration.SCALE(network), None, val_loader, metric=FPRAtTPR(0.8), metric_name="FPR80TPR",
        higher_is_better=False,
    )  # fmt: skip
    search.run()
    assert [found["params"]["percentile"] for found in search.results_] == [65, 70, 75, 80, 85, 90, 95]
    assert search.best_score_ == min(found["score"] for found in search.results_)
    with pytest.raises(ValueError, match="LTS has an empty hyperparameter_space"):
        GridSearch(integration.LTS(network), None, val_loader)


@pytest.mark.parametrize(
    "space", [{"depth": [1]}, {"fit_split": ["val"]}, {"precision": ["bfloat16"]}, {"bins": [10, 0]}]
)
def test_invalid_space_raises_before_the_pass(network, fit_loader, val_loader, space):
    search = GridSearch(integration.OptFS(network), fit_loader, val_loader, space)

    def run():
        with pytest.raises(SettingError, match=next(iter(space))):
            search.run()

    assert images_seen(run) == 0

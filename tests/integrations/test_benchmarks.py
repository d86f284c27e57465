"""This package's methods in pytorch-ood's benchmarks and metrics, on images made here; nothing is downloaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_ood_networks import Net, passes
from tiny import make_images
from torch.utils.data import ConcatDataset, TensorDataset

pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")

from pytorch_ood.benchmark import CIFAR10_ODIN, Benchmark
from pytorch_ood.dataset.img import GaussianNoise, UniformNoise
from pytorch_ood.detector import MaxSoftmax
from pytorch_ood.metrics import OODMetrics
from pytorch_ood.utils import ToUnknown

import openood_adascale
from openood_adascale.integrations import pytorch_ood as integration
from openood_adascale.metrics import ood_metrics

NAMES = ["MSP", "Energy", "SCALE", "LTS", "BFAct", "OptFS", "AdaSCALE", "AdaSCALE_L"]
IN_OURS = {"AUROC": "AUROC", "FPR95TPR": "FPR@95", "AUPR-IN": "AUPR_IN", "AUPR-OUT": "AUPR_OUT"}


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
    loader = torch.utils.data.DataLoader(Local().train_set(), batch_size=16)
    return {name: getattr(integration, name)(network).fit(loader) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_s_metrics_are_this_package_s(fitted, name):
    benchmark = Local()
    results = benchmark.evaluate(fitted[name], loader_kwargs={"batch_size": 16})
    assert [result["Dataset"] for result in results] == ["near", "far"]
    core = fitted[name].core
    known = core.score(benchmark.known).numpy()
    for result, images in zip(results, benchmark.unknown.values(), strict=True):
        want = ood_metrics(known, core.score(images).numpy())
        for theirs, ours in IN_OURS.items():
            np.testing.assert_allclose(100 * result[theirs], want[ours], atol=0.1, err_msg=theirs)


def test_several_detectors_share_passes(fitted):
    several = list(fitted.values())
    images = 2 * 40 + 30 + 35
    results = []

    def evaluated(detectors):
        results[:] = Local().evaluate(detectors, loader_kwargs={"batch_size": 16})

    assert passes(lambda: evaluated(several)) == 3 * images  # the activations, and with the perturbed images'
    assert {result["Detector"] for result in results} == {*NAMES}
    assert passes(lambda: evaluated(several[:6])) == images
    assert passes(lambda: evaluated(several[6:])) == 2 * images
    alone = Local().evaluate(fitted["OptFS"], loader_kwargs={"batch_size": 16})
    evaluated(several)
    assert [r["AUROC"] for r in results if r["Detector"] == "OptFS"] == [r["AUROC"] for r in alone]


def test_beside_pytorch_oods_own(network, fitted):
    results = Local().evaluate([MaxSoftmax(network), fitted["MSP"]], loader_kwargs={"batch_size": 16})
    theirs, ours = ([r["AUROC"] for r in results if r["Detector"] == name] for name in ("MaxSoftmax", "MSP"))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_file_of_its_cache_is_of_one_network_and_perturbation(network, fitted, tmp_path):
    """pytorch-ood goes by the key that it is given and the encoder's name: ours tells weights and perturbation."""
    keep = {"loader_kwargs": {"batch_size": 16}, "cache_dir": str(tmp_path), "cache_key": "same"}

    def auroc(detector):
        with pytest.warns(UserWarning, match="cache reuse is keyed"):
            return [result["AUROC"] for result in Local().evaluate(detector, **keep)]

    first = auroc(fitted["SCALE"])
    assert passes(lambda: auroc(fitted["LTS"])) == 0
    assert passes(lambda: auroc(fitted["AdaSCALE"])) > 0
    torch.manual_seed(5)
    other = integration.SCALE(Net().eval())
    other.encoder(make_images(2, 1))
    want = [result["AUROC"] for result in Local().evaluate(other, loader_kwargs={"batch_size": 16})]
    assert auroc(other) == want != first


def test_one_of_its_benchmarks(network, fitted):
    """CIFAR10_ODIN's own code over noise of pytorch-ood's: its constructor would download."""
    benchmark = object.__new__(CIFAR10_ODIN)
    benchmark.test_in = Pairs((image, 0) for image in make_images(20, 3))
    benchmark.ood_names, benchmark.test_oods = ["UniformNoise", "GaussianNoise"], []
    for kind in (UniformNoise, GaussianNoise):
        noise = kind(12, size=(8, 8, 3), transform=_as_tensor, target_transform=ToUnknown(), seed=123)
        benchmark.test_oods.append(
            Pairs(noise[number] for number in range(12))
        )  # other noise with each reading
    results = benchmark.evaluate([fitted["AdaSCALE"], fitted["LTS"]], loader_kwargs={"batch_size": 8})
    assert [(result["Dataset"], result["Detector"]) for result in results] == [
        (name, method) for name in benchmark.ood_names for method in ("AdaSCALE", "LTS")
    ]
    lts = openood_adascale.LTS(network)
    noise = torch.stack([image for image, _ in benchmark.test_oods[1]])
    want = ood_metrics(lts.score(make_images(20, 3)).numpy(), lts.score(noise).numpy())["AUROC"]
    assert 100 * results[-1]["AUROC"] == pytest.approx(want, abs=0.1)


class Pairs(list, torch.utils.data.Dataset):
    """Images and labels in a list."""

    __add__ = torch.utils.data.Dataset.__add__


def _as_tensor(image):
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255


def test_metrics_of_batches(fitted):
    metrics = OODMetrics()
    benchmark = Local()
    loader = torch.utils.data.DataLoader(benchmark.test_sets()[0], batch_size=16)
    for images, labels in loader:
        metrics.update(fitted["AdaSCALE"](images), labels)
    core = fitted["AdaSCALE"].core
    want = ood_metrics(core.score(benchmark.known).numpy(), core.score(benchmark.unknown["near"]).numpy())
    assert 100 * metrics.compute()["AUROC"] == pytest.approx(want["AUROC"], abs=1e-6)

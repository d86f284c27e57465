"""A trained network and a benchmark of its images. Needs no pytorch-ood."""

from __future__ import annotations

import numpy as np
import torch
from pytorch_ood_networks import Net
from tiny import make_images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from openood_adascale import Benchmark

IMAGES = {"train": 230, "val": 50, "ood_val": 50, "test": 60, "near": 40, "far": 40}


def train():
    """Return a network that has learned five kinds of images with different means, and these means."""
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


def benchmark_of(means):
    images, labels = kinds(means, 200, 1)
    # Some training images are OOD and labelled so.
    train = torch.cat([images, make_images(30, 20, shift=3)]), torch.cat([labels, torch.full((30,), -1)])
    return Benchmark(
        test=loader_of(*kinds(means, 60, 2)),
        near={"near": loader_of(make_images(40, 5))},
        far={"far": loader_of(make_images(40, 6) * 3)},
        val=loader_of(*kinds(means, 50, 7)),
        ood_val=loader_of(make_images(50, 8)),
        train=loader_of(*train),
    )


def scores_by_itself(detector, data, fit=True):
    """Return a detector's scores on the test images as pytorch-ood itself computes them, with the sign turned round."""
    detector.to("cpu")
    if detector.requires_fit and fit:
        detector.fit(data.train)
    found = {}
    for name, loader in {"id": data.test, **data.near, **data.far}.items():
        images = loader.dataset.tensors[0].split(16)
        found[name] = -torch.cat([detector.predict(batch).detach() for batch in images]).double().numpy()
    return found


def assert_same_scores(got, want, rtol):
    for name, scores in want.items():
        np.testing.assert_allclose(
            got[name], scores, rtol=rtol, atol=rtol * np.abs(scores).max(), err_msg=name
        )

"""A trained network, a benchmark of its images, and pytorch-ood's detectors on them by themselves. Needs no pytorch-ood."""

from __future__ import annotations

import numpy as np
import torch
from pytorch_ood_networks import Net
from tiny import make_images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from openood_adascale import Benchmark


def train():
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


def benchmark_of(means):
    """Five kinds of images, and others."""
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

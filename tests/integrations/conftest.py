"""A network and images that the tests of the integrations share."""

from __future__ import annotations

import pytest
import torch
from helpers import benchmark_of, train
from networks import Net, known_and_unknown, make_images
from torch import Tensor
from torch.utils.data import DataLoader


@pytest.fixture
def network() -> Net:
    torch.manual_seed(0)
    network = Net()
    with torch.no_grad():
        for _ in range(20):  # batch statistics that differ from eval mode's
            network.train()(torch.randn(16, 3, 8, 8) * 2 + 1)
    return network.eval()


@pytest.fixture
def fit_loader() -> DataLoader:
    """50 ID images, and 30 OOD images far from them."""
    return known_and_unknown(make_images(50, 1), make_images(30, 2, shift=4))


@pytest.fixture
def val_loader() -> DataLoader:
    return known_and_unknown(make_images(40, 3), make_images(35, 4, shift=0.7))


@pytest.fixture
def test_images() -> Tensor:
    return torch.cat([make_images(12, 5), make_images(12, 6, shift=1)])


@pytest.fixture(scope="session")
def trained():
    return train()


@pytest.fixture
def data(trained):
    return benchmark_of(trained[1])

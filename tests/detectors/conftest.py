"""Networks and training images that the methods' tests share."""

import pytest
import torch
from conftest import TinyNet, make_images
from rivals import Signed


@pytest.fixture(params=[TinyNet, Signed])
def net(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return request.param().eval()


@pytest.fixture
def train_images():
    return make_images(120, 3)

"""Networks and training images that the methods' tests share."""

import pytest
import torch
from rivals import Signed
from tiny import TinyNet, make_images


@pytest.fixture(params=[TinyNet, Signed])
def net(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return request.param().eval()


@pytest.fixture
def train_images():
    return make_images(120, 3)

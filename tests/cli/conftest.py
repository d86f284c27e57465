"""Folders of small pictures and a network for them, in a file of its own."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

NETWORK = """
import torch
from torch import nn
from torchvision import transforms

CALLS = []

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(64, 3)

    def forward(self, images):
        return self.fc(self.features(images))

def network():
    torch.manual_seed(0)
    return Net(), transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()])
"""


def pictures(folder, count, seed, classes=None, size=40):
    rng = np.random.default_rng(seed)
    for number in range(count):
        where = folder / classes[number % len(classes)] if classes else folder
        where.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
        pixels[:, :, number % 3] //= 1 + seed
        Image.fromarray(pixels).save(where / f"picture {number:03}.png")
    return folder


@pytest.fixture(scope="session")
def filled():
    """filled(folder): with a network and pictures of all kinds."""

    def fill(folder):
        (folder / "net.py").write_text(NETWORK)
        pictures(folder / "id", 30, 1, ["a", "b", "c"])
        pictures(folder / "val", 24, 2)
        for number, name in enumerate(("oodval", "near", "far")):
            pictures(folder / name, 20, 3 + number)
        return folder

    return fill


@pytest.fixture
def folders(tmp_path, filled):
    return filled(tmp_path)

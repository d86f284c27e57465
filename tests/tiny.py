"""A small network, images for it, and loaders of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

HEAD = 5
"""Images that run through a network to find its head: two, the same two again, and one alone."""


class TinyNet(nn.Module):
    """64 rectified activations, dropout and batch norm, so that a wrong mode shows."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5),
        )  # fmt: skip
        self.fc = nn.Linear(64, 5, bias=bias)
        self.calls: list[int] = []
        """Sizes of the batches so far."""

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return self.fc(self.features(images))


def make_images(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + shift


def make_loader(images: Tensor, batch_size: int = 16, **kwargs) -> DataLoader:
    labels = torch.arange(len(images)) % 5
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size, **kwargs)

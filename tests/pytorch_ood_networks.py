"""A network that pytorch-ood's detectors can take apart, and images with pytorch-ood's labels. Needs no pytorch-ood."""

from __future__ import annotations

import torch
from tiny import TinyNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SEEN: list[int] = []
"""Sizes of the batches that went through any Net, also through its parts."""


class Counter(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        SEEN.append(len(images))
        return images


def images_seen(call):
    """Return the number of images that went through the networks during a call."""
    SEEN.clear()
    call()
    return sum(SEEN)


class Net(TinyNet):
    """With the parts that pytorch-ood's detectors take."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(Counter(), *self.features)

    def maps(self, images: Tensor) -> Tensor:
        return self.features(images)[:, :, None, None]

    def from_maps(self, maps: Tensor) -> Tensor:
        return self.fc(maps.flatten(1))


def known_and_unknown(known: Tensor, unknown: Tensor) -> DataLoader:
    """Return a loader of both in turn, the OOD images with labels below 0."""
    labels = torch.cat([torch.arange(len(known)) % 5, -1 - torch.arange(len(unknown)) % 3])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(torch.cat([known, unknown])[order], labels[order]), batch_size=16)

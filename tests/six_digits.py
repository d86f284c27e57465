"""Six of ten digits as a benchmark of image files, and a network for them as anyone's is and as OpenOOD's are."""

from __future__ import annotations

import torch
from openood_postprocessing import seen_images
from torch import nn
from torch.utils.data import DataLoader

from openood_adascale import Benchmark
from openood_adascale.data.files import find_images
from openood_adascale.models.transforms import transform_for

BATCH = 64
TRANSFORM = "size=32,resize=32,mean=0.5,std=0.25"


def count_images(network, count):
    seen_images[network] = seen_images.get(network, 0) + count


class Plain(nn.Module):
    """As anyone's network is: nothing of what OpenOOD's methods ask for. Counts the images that it is given."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 32, 5, 4), nn.Linear(128, 6)

    def feature(self, images):
        count_images(self, len(images))
        return nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1)

    def forward(self, images):
        return self.head(self.feature(images))


class OpenOODsWay(Plain):
    """The same network as OpenOOD's are made."""

    feature_size = 128

    @property
    def fc(self):
        return self.head

    def forward(self, images, return_feature=False):
        feature = self.feature(images)
        return (self.head(feature), feature) if return_feature else self.head(feature)

    def get_fc(self):
        return self.head.weight.detach().numpy(), self.head.bias.detach().numpy()

    def get_fc_layer(self):
        return self.head


def places(checkout):
    """Of the digits: kind, and list and root of each set."""
    data = checkout / "data"

    def listed(name):
        return {
            "images": str(data / "benchmark_imglist/cifar10" / name),
            "root": str(data / "images_classic"),
        }

    return {
        "train": listed("train_cifar10.txt"),
        "val": listed("val_cifar10.txt"),
        "test": listed("test_cifar10.txt"),
        "ood_val": listed("val_tin.txt"),
        "near": {name: listed(f"test_{name}.txt") for name in ("cifar100", "tin")},
        "far": {name: listed(f"test_{name}.txt") for name in ("mnist", "texture")},
        "csid": {"cifar10c": listed("test_cifar10c.txt")},
    }


def digits_of(checkout):
    """All sets as loaders."""
    transform, _ = transform_for("", None, None, TRANSFORM)

    def loader(of):
        files = find_images(of["images"], root=of["root"]).with_transform(transform)
        return DataLoader(files, batch_size=BATCH)

    found = places(checkout)
    near, far, csid = (
        {name: loader(of) for name, of in found.pop(split).items()} for split in ("near", "far", "csid")
    )
    return Benchmark(near=near, far=far, covariate_shift=csid, **{k: loader(of) for k, of in found.items()})

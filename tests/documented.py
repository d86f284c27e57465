"""What the documents' code is run with: small networks, loaders and folders under the names that the pages use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from custom_datasets import picture
from tiny import TinyNet, make_images, make_loader

MOST = 4
"""Images in each of OpenOOD's lists, at most: a ResNet-18 runs over them."""

NETWORK = """
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(64, 3)

    def forward(self, images):
        return self.fc(self.features(images))

def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

def network():
    torch.manual_seed(0)
    return Net(), pixels
"""


def tiny_network() -> TinyNet:
    """5 classes, 64 rectified activations, 8 x 8 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyNet().eval()


def names() -> dict[str, Any]:
    """The names that any page, and any docstring, can use without saying where they come from."""
    from openood_adascale import Benchmark

    loaders = {
        "val_loader": make_loader(make_images(50, 1)),
        "ood_val_loader": make_loader(make_images(40, 2, 0.7)),
        "train_loader": make_loader(make_images(60, 3)),
        "test_loader": make_loader(make_images(30, 4)),
        "near_loader": make_loader(make_images(20, 5, 0.3)),
        "far_loader": make_loader(make_images(20, 6, 3)),
    }
    benchmark = Benchmark(
        test=loaders["test_loader"],
        near={"wolves": loaders["near_loader"]},
        far={"textures": loaders["far_loader"]},
        val=loaders["val_loader"],
        ood_val=loaders["ood_val_loader"],
        train=loaders["train_loader"],
    )
    network = tiny_network()
    found = {**loaders, "network": network, "images": make_images(24, 7), "benchmark": benchmark}
    return {**found, **activations(network)}


def activations(network: TinyNet) -> dict[str, Any]:
    """What ``docs/method.md`` calls a, a_eps, W and b."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        val_a, a = (network.features(make_images(count, seed)) for count, seed in ((50, 1), (24, 7)))
        val_moved, moved = ((x + 0.1 * torch.randn(x.shape, generator=generator)).relu() for x in (val_a, a))
    head = {"W": network.fc.weight.detach(), "b": network.fc.bias.detach()}
    return {"a": a, "a_eps": moved, "val_a": val_a, "val_a_eps": val_moved, **head}


def pytorch_ood_names() -> dict[str, Any]:
    """What ``docs/pytorch-ood.md`` uses: a network with parts, loaders with pytorch-ood's labels."""
    from pytorch_ood_networks import Net, known_and_unknown

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Net().eval()
    return {
        "network": network,
        "features": network.features,
        "loader": known_and_unknown(make_images(50, 1), make_images(30, 2, 4)),
        "validation_loader": known_and_unknown(make_images(40, 3), make_images(35, 4, 0.7)),
    }


def write_folders(place: Path) -> None:
    """Folders of images, and a network in a file, for the commands."""
    (place / "file.py").write_text(NETWORK, encoding="utf-8")
    rng = np.random.default_rng(0)
    for folder, count in (("test", 12), ("val", 12), ("unknown", 8), ("wolves", 6), ("textures", 6)):
        for number in range(count):
            name = f"{('cat', 'dog', 'fox')[number % 3]}/{number}.png"
            picture(place / "images" / folder / name, int(rng.integers(255)), (32, 32))
    picture(place / "new" / "1.png")
    picture(place / "one.jpg")


def write_published(place: Path) -> None:
    """A run whose figures are the authors' own."""
    from report_files import RESNET50, authors, imagenet_csv

    imagenet_csv(place / "results" / RESNET50 / "ood" / "adascale.csv", authors())


def write_pets(place: Path) -> None:
    """The images that ``docs/own-datasets.md`` describes; its yml is the page's own."""
    for split, count in (("train", 20), ("val", 4), ("test", 4), ("blurred", 2)):
        for label, name in enumerate(("cat", "dog", "old horse")):
            for number in range(count):
                picture(place / "images" / split / name / f"{number}.png", 10 + 60 * label + number, (32, 32))
    for number in range(6):
        for folder in ("unknown", "textures", "packs"):
            picture(place / "images" / folder / f"{number}.png", 200 + number, (32, 32))
    (place / "lists").mkdir()
    (place / "lists" / "wolves.csv").write_text("path\n" + "".join(f"packs/{n}.png\n" for n in range(6)))


def write_checkout(place: Path, root: Path) -> None:
    """A small benchmark cifar10 in a copy of OpenOOD, and an untrained network where the pages have a trained one."""
    from openood_bench import copy_checkout, importable, write_cifar10_benchmark

    copy_checkout(root, place)
    write_cifar10_benchmark(place / "data")
    for path in (place / "data" / "benchmark_imglist" / "cifar10").glob("*.txt"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:: len(lines) // MOST + 1]))  # of each class some
    with importable(place), torch.random.fork_rng(devices=[]):
        from openood.networks.resnet18_32x32 import ResNet18_32x32

        torch.manual_seed(0)
        weights = ResNet18_32x32(num_classes=10).state_dict()
    for name in ("cifar10_resnet18", "cifar10_resnet18_32x32_base_e100_lr0.1_default"):
        run = place / "results" / name / "s0"
        run.mkdir(parents=True)
        torch.save(weights, run / "best.ckpt")

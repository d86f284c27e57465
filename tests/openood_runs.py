"""Networks for the tests against the real OpenOOD, as its training would leave them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openood_bench
from filelock import FileLock
from openood_bench import importable, write_imagenet_benchmark


def cifar10_batch(data: Path, split: str) -> tuple[Any, Any]:
    """Images of an ID split as OpenOOD's preprocessing gives them, [n, 3, 32, 32], and labels, [n]."""
    import torch
    from PIL import Image

    mean, std = np.array([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]], np.float32)
    images, labels = [], []
    for line in (data / "benchmark_imglist" / "cifar10" / f"{split}_cifar10.txt").read_text().splitlines():
        name, label = line.split()
        image = np.asarray(Image.open(data / "images_classic" / name), np.float32) / 255
        images.append((image - mean) / std)
        labels.append(int(label))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)


def train_digits(net: Any, images: Any, labels: Any, steps: int, learning_rate: float) -> None:
    """Trains in place on random batches of 32; leaves the network in eval mode."""
    import torch
    from torch.nn import functional as F

    # bfloat16 halves the time or better where the processor has it, and is slower where not.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    has_bf16 = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    optimizer = torch.optim.SGD(
        net.parameters(), learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    net.train().to(memory_format=torch.channels_last)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3  # in so few steps the default leaves the running statistics behind
    for chosen in torch.randint(len(images), (steps, 32)):
        batch = images[chosen].to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16):
            loss = F.cross_entropy(net(batch), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval().to(memory_format=torch.contiguous_format)


def train_runs(checkout: Path, root: Path) -> None:
    """Trains on the digits, and writes <root>/s0/best.ckpt and <root>/s1/best.ckpt."""
    import torch

    with importable(checkout), torch.random.fork_rng(devices=[]):
        from openood.networks.resnet18_32x32 import ResNet18_32x32

        images, labels = cifar10_batch(checkout / "data", "train")
        val_images, val_labels = cifar10_batch(checkout / "data", "val")

        def accuracy() -> float:
            with torch.no_grad():
                return (net(val_images).argmax(1) == val_labels).double().mean().item()

        torch.manual_seed(0)
        net = ResNet18_32x32(num_classes=10)
        for run, steps, learning_rate in (("s0", 24, 0.03), ("s1", 8, 0.01)):
            train_digits(net, images, labels, steps, learning_rate)
            # How far these steps lead is another matter on another processor.
            for _ in range(3):
                if accuracy() > 0.95:
                    break
                train_digits(net, images, labels, 14, 0.01)
            else:
                raise RuntimeError(
                    f"the network that the tests stand on was not learnt: {accuracy():.1%} of val right"
                )
            (root / run).mkdir(parents=True)
            torch.save(net.state_dict(), root / run / "best.ckpt")


def kept_runs(checkout: Path, root: Path, cache: Path) -> None:
    """:func:`train_runs`, from ``cache`` where it was done before, with this recipe and this torch.

    Of several workers one trains, with all cores, and the others wait for it.
    """
    import torch

    of = Path(__file__).read_bytes() + Path(openood_bench.__file__).read_bytes() + torch.__version__.encode()
    kept = cache / hashlib.sha256(of).hexdigest()[:16]
    with FileLock(cache / "training.lock"):
        if not kept.is_dir():
            for outdated in cache.iterdir():
                if outdated.is_dir():
                    shutil.rmtree(outdated)
            unfinished = Path(tempfile.mkdtemp(dir=cache))  # under its name only when complete
            threads = torch.get_num_threads()
            torch.set_num_threads(os.cpu_count() or 1)
            try:
                train_runs(checkout, unfinished)
            finally:
                torch.set_num_threads(threads)
            unfinished.rename(kept)
    shutil.copytree(kept, root)


def write_untrained(checkout: Path, path: Path) -> None:
    """Adds a tiny benchmark imagenet to the checkout's data, and writes a ResNet-50 for it, of which only the batch norms
    have seen images."""
    import torch

    train = write_imagenet_benchmark(checkout / "data")
    with importable(checkout), torch.random.fork_rng(devices=[]):
        from openood.networks.resnet50 import ResNet50

        torch.manual_seed(0)
        net = ResNet50()
        net.train()
        with torch.no_grad():
            for start in (0, 12):
                batch = np.stack([image[16:240, 16:240] for image, _ in train[start : start + 12]])
                net(torch.from_numpy(batch).permute(0, 3, 1, 2) / 127.5 - 1)
    path.parent.mkdir(parents=True)
    torch.save(net.eval().state_dict(), path)

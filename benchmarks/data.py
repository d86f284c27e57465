"""The benchmark's images: scikit-learn's digits and photos, on disk as OpenOOD's cifar10 and in memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import BATCH
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import openood_support as bench  # for the others here, too


def images_of(n_val: int, n_ood_val: int, root: Path) -> dict[str, Any]:
    """The benchmark's images on disk as OpenOOD's cifar10, and as loaders in memory."""
    splits = (slice(0, 100), slice(100, 100 + n_val // 6 + 1), slice(140, 175))
    bench.write_cifar10_benchmark(root, splits)
    known, unknown = bench.digit_images()
    val = [item for digit in known for item in digit[splits[1]]][:n_val]
    bench.save_images(val, root, "images_classic", "cifar10/val", ["cifar10/val_cifar10.txt"])
    held_out = [item for digit in unknown for item in digit[40:]][:: max(1, 500 // n_ood_val)][:n_ood_val]
    bench.save_images(held_out, root, "images_classic", "tin/val", ["cifar10/val_tin.txt"])
    test = [item for digit in known for item in digit[splits[2]]]
    sets = {
        "digits 6, 7": unknown[0][:60] + unknown[1][:60],
        "digits 8, 9": unknown[2][:60] + unknown[3][:60],
        "photos": bench.photo_patches(120, seed=5, crop=64),
        "photos on black": bench.on_black(bench.photo_patches(120, seed=3, crop=64, grey=True)),
    }

    def loader(images: Any) -> DataLoader:
        mean, std = np.array([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]], np.float32)
        pixels = np.stack([(image.astype(np.float32) / 255 - mean) / std for image, _ in images]).astype(
            np.float32
        )
        tensors = (
            torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            torch.tensor([label for _, label in images]),
        )
        return DataLoader(TensorDataset(*tensors), batch_size=BATCH)

    return {
        "train": loader([item for digit in known for item in digit[splits[0]]]), "val": loader(val),
        "ood_val": loader(held_out), "test": loader(test), "ood": {name: loader(images) for name, images in sets.items()},
    }  # fmt: skip


def train_digits(net: Any, images: Any, labels: Any, steps: int, learning_rate: float) -> None:
    """Train in place on random batches of 32, and leave the network in eval mode."""
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

"""Rows about a GPU: scoring beside OpenOOD's ``adascale_a``, memory, and what is outside of the network."""

from __future__ import annotations

from typing import Any

import torch
from measure import BATCH, Table, quiet
from network_rows import factors, outside_the_network, scoring, their_postprocessor
from torch import nn

from openood_adascale import AdaSCALE


def on_a_gpu(table: Table, repeats: int, device: torch.device, with_openood: bool) -> None:
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    for kind, network, side, count in _networks(with_openood):
        network.eval().to(device)
        images = torch.randn(count, 3, side, side, device=device)
        theirs = _adascale_a(network, images) if with_openood else None
        scoring(table, network, images, repeats, theirs, kind)
        if theirs is not None:
            _memory(table, network, images, theirs, kind)
    scoring(
        table, vit_b_16().eval().to(device), torch.randn(64, 3, 224, 224, device=device), repeats, None,
        "ViT-B/16, 224×224",
    )  # fmt: skip
    outside_the_network(table, repeats, device)
    factors(table, repeats, device)


def _networks(with_openood: bool) -> list[tuple[str, nn.Module, int, int]]:
    if with_openood:
        from openood.networks import ResNet18_32x32, ResNet50

        small, large = ResNet18_32x32(num_classes=10), ResNet50()
    else:
        from torchvision.models import resnet18, resnet50

        small, large = resnet18(num_classes=10), resnet50()
        small.conv1, small.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return [("ResNet-18, 32×32", small, 32, BATCH), ("ResNet-50, 224×224", large, 224, BATCH)]


def _adascale_a(network: nn.Module, images: torch.Tensor) -> Any:
    from openood.networks.adascale_net import AdaScaleANet

    theirs = their_postprocessor()
    quiet(lambda: theirs.setup(AdaScaleANet(network), {"val": [{"data": images[:32].clone()}]}, {}))
    theirs.set_hyperparam([[80, 85], 5, 1, 10, 0.05])
    return theirs


def _memory(table: Table, network: nn.Module, images: torch.Tensor, theirs: Any, kind: str) -> None:
    detector = AdaSCALE(network).fit([images[:32]], progress=False)
    calls = {
        "ours": lambda: detector.score(images),
        "adascale_a": lambda: theirs.postprocess(theirs.net, images.clone()),
    }
    peak = {}
    for name, call in calls.items():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peak[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    ratio = peak["ours"] / peak["adascale_a"]
    table.add(
        f"peak memory of scoring {len(images)} images on the GPU ({kind})",
        f"{ratio:.2f} × adascale_a ({peak['ours']:,.0f} of {peak['adascale_a']:,.0f} MiB)",
    )

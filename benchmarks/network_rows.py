"""Rows about the network's passes: scoring, precision, memory, and what is outside of the network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import BATCH, Table, quiet, side_by_side, told
from torch import nn

from openood_adascale import AdaSCALE, functional
from openood_adascale.features.head import LinearHead
from openood_adascale.features.network import WeightsVersion
from openood_adascale.features.statistics import Features, FeatureStatistics, Perturbation
from openood_adascale.metrics import auroc


def scoring(
    table: Table,
    network: nn.Module,
    images: torch.Tensor,
    repeats: int,
    theirs: Any,
    kind: str = "ResNet-18, 32×32",
) -> None:
    """Scoring a batch against one plain float32 forward pass of it, as OpenOOD's MSP runs it.

    Args:
        theirs: OpenOOD's adascale_a, ready to score.
    """
    device = images.device

    def plain() -> None:
        with torch.no_grad():
            network(images).softmax(1).max(1)

    variants = {
        "float32": {},
        "bfloat16": {"precision": "bfloat16"},
        "random pixels, float32": {"pixels": "random"},
        "random pixels, bfloat16": {"pixels": "random", "precision": "bfloat16"},
    }
    detectors = {
        name: AdaSCALE(network, **v).fit([images[:100]], progress=False) for name, v in variants.items()
    }
    calls = {"plain": plain, **{n: (lambda d=d: d.score(images)) for n, d in detectors.items()}}
    if theirs is not None:
        calls["adascale_a"] = lambda: theirs.postprocess(theirs.net, images.clone())
    found = side_by_side(calls, repeats, device)
    targets = {"float32": 2.8, "bfloat16": 0.8, "random pixels, float32": 1.8}
    for name in [n for n in found if n != "plain"]:
        ratio = found[name] / found["plain"]
        target = targets.get(name)
        table.add(
            f"scoring {len(images)} images, {name} ({kind})",
            f"{ratio:.2f} × a plain float32 forward pass ({told(found['plain'])})",
            f"≤ {target} ×" if target else "",
            None if target is None else ratio <= target,
        )


def outside_the_network(table: Table, repeats: int, device: torch.device) -> None:
    """Pixels, sorting, statistics, CDF and energy against a ResNet-50's forward pass."""
    from torchvision.models import resnet50

    network = resnet50().eval().to(device)
    images = torch.randn(32, 3, 224, 224, device=device)
    gradient, activation = torch.randn_like(images), torch.randn(32, 2048, device=device).relu()
    perturbation = Perturbation("trivial", 0.05, 0.5)
    head = LinearHead(network.fc.weight.detach(), network.fc.bias.detach())
    detector = AdaSCALE(network).set_state(torch.rand(5000, dtype=torch.float64).mul(100).sort().values)
    z = activation @ head.weight.T
    features = Features(z, z.argmax(1), activation, {perturbation: activation + 0.1}, head)

    def plain() -> None:
        with torch.no_grad():
            network(images)

    def ours() -> None:
        images + 0.5 * functional.perturbation_direction(gradient, 0.05, "trivial")
        statistics = FeatureStatistics.from_features(features, detector.settings.request())
        detector.score_statistics(statistics, detector.settings, detector.state)

    found = side_by_side({"plain": plain, "ours": ours}, repeats, device)
    share = 100 * found["ours"] / found["plain"]
    table.add(
        "everything outside the network (ResNet-50, 224×224, batch 32)",
        f"{share:.2f} % of a forward pass ({1000 * found['ours']:.1f} ms)",
        "≤ 3 %",
        share <= 3,
    )


def tripwire(table: Table, repeats: int, device: torch.device) -> None:
    """Measure the check for changed weights against a plain forward pass of 32 images."""
    from torchvision.models import efficientnet_v2_l, resnet50

    for name, make, side in (("ResNet-50", resnet50, 224), ("EfficientNetV2-L", efficientnet_v2_l, 480)):
        network = make().eval().to(device)
        images = torch.randn(32, 3, side, side, device=device)
        version = WeightsVersion(network)

        def plain(network: nn.Module = network, images: torch.Tensor = images) -> None:
            with torch.no_grad():
                network(images)

        def check(network: nn.Module = network, version: WeightsVersion = version) -> None:
            for _ in range(100):
                version.holds(network)

        passed = side_by_side({"plain": plain}, max(1, repeats // 2), device)["plain"]
        checked = side_by_side({"check": check}, repeats, device)["check"]
        share = checked / passed  # 100 checks, so in percent
        table.add(
            f"check for changed weights ({name}, {side}×{side}, batch 32)",
            f"{share:.3f} % of a forward pass ({10 * checked:.2f} ms of {told(passed)})",
            "≤ 0.5 %",
            share <= 0.5,
        )


def parts_of_a_batch(table: Table, network: nn.Module, images: torch.Tensor, repeats: int) -> None:
    """Name the parts of AdaSCALE's time for one batch beside its forward and backward passes."""
    device = images.device
    detector = AdaSCALE(network).fit([images[:100]], progress=False)
    perturbation = detector.settings.perturbation

    def passes() -> None:
        features = detector.extractor.split
        leaf = images.detach().requires_grad_(True)
        logits = features(leaf).logits
        torch.autograd.grad(logits.amax(1).sum(), leaf)
        with torch.no_grad():
            features(images)

    features = detector.extractor.extract(images, [perturbation])
    statistics = FeatureStatistics.from_features(features, detector.settings.request())
    gradient = torch.randn_like(images)
    calls = {
        "all": lambda: detector.score(images),
        "passes": passes,
        "direction": lambda: functional.perturbation_direction(gradient, 0.05, "trivial"),
        "statistics": lambda: FeatureStatistics.from_features(features, detector.settings.request()),
        "scores": lambda: detector.score_statistics(statistics, detector.settings, detector.state),
        "weights check": detector.require_fitted,
    }
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    found = side_by_side(calls, repeats, device)
    listed = ", ".join(f"{name} {told(found[name])}" for name in calls if name != "all")
    table.add(
        f"AdaSCALE on {len(images)} images (ResNet-18, 32×32), parts", f"{told(found['all'])}: {listed}"
    )


def factors(table: Table, repeats: int, device: torch.device) -> None:
    """r with a percentile per image against the fixed-percentile factor written with one topk."""
    for size in (128, 512, 1024, 2048, 3024):
        activation = torch.randn(BATCH, size, device=device).relu()
        percentiles = torch.empty(BATCH, dtype=torch.float64, device=device).uniform_(80, 85)
        kept = size - round(size * 85 / 100)

        def fixed(activation=activation, kept=kept) -> None:
            for _ in range(50):
                activation.sum(1) / activation.topk(kept, dim=1).values.sum(1)

        def ours(activation=activation, percentiles=percentiles) -> None:
            for _ in range(50):
                functional.scaling_factor(activation, percentiles)

        found = side_by_side({"fixed": fixed, "ours": ours}, max(repeats, 7), device)
        ratio = found["ours"] / found["fixed"]
        table.add(
            f"r with a percentile per image, D = {size}, batch {BATCH}",
            f"{ratio:.2f} × one topk at a fixed percentile ({found['fixed'] / 50 * 1e6:.0f} µs)",
            "≤ 1.5 ×",
            ratio <= 1.5,
        )


def agreement(table: Table, network: nn.Module, benchmark: Any) -> None:
    """AUROC of bfloat16 and random pixels against float32 with trivial pixels, on every OOD set."""
    images = lambda loader: torch.cat([batch[0] for batch in loader])  # noqa: E731
    known, val = images(benchmark["test"]), images(benchmark["val"])
    for name, changes in (("bfloat16", {"precision": "bfloat16"}), ("random pixels", {"pixels": "random"})):
        differences = {}
        for ood_name, loader in benchmark["ood"].items():
            aurocs = []
            for setting in ({}, changes):
                detector = AdaSCALE(network, **setting).fit([val], progress=False)
                scores = (detector.score(known).numpy(), detector.score(images(loader)).numpy())
                aurocs.append(auroc(*scores))
            differences[ood_name] = aurocs[1] - aurocs[0]
        worst = max(abs(value) for value in differences.values())
        listed = ", ".join(f"{ood_name} {value:+.2f}" for ood_name, value in differences.items())
        table.add(
            f"AUROC of {name} minus float32 with trivial pixels, points", listed, "within ± 0.3", worst <= 0.3
        )


def peak_memory(which: str, checkpoint: str) -> None:
    """In a process of its own: prints how far scoring one batch raises the peak, in MB."""
    from openood.networks import ResNet18_32x32
    from openood.networks.adascale_net import AdaScaleANet

    network = ResNet18_32x32(num_classes=10)
    network.load_state_dict(torch.load(checkpoint))
    network.eval()
    images = torch.randn(BATCH, 3, 32, 32)
    if which == "adascale_a":
        postprocessor = their_postprocessor()
        network = AdaScaleANet(network)
        call = lambda: postprocessor.postprocess(network, images)  # noqa: E731
        quiet(lambda: postprocessor.setup(network, {"val": [{"data": images[:8].clone()}]}, {}))
        postprocessor.set_hyperparam([[80, 85], 5, 1, 10, 0.05])
    else:
        detector = AdaSCALE(network, precision=which).fit([images[:8]], progress=False)
        call = lambda: detector.score(images)  # noqa: E731
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here; Linux only
    before = resident("VmRSS")
    call()
    print(json.dumps(resident("VmHWM") - before))


def resident(what: str) -> float:
    """MB that this process holds (VmRSS) or has held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def their_postprocessor() -> Any:
    import openood
    from openood.evaluation_api.postprocessor import get_postprocessor

    return get_postprocessor(str(Path(openood.__file__).parents[1] / "configs"), "adascale_a", "cifar10")


def memory(table: Table, checkpoint: Path) -> None:
    found = {}
    for which in ("adascale_a", "float32", "bfloat16"):
        command = [
            sys.executable,
            str(Path(__file__).with_name("run.py")),
            "--peak-memory",
            which,
            str(checkpoint),
        ]
        done = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
        found[which] = median(float(output.splitlines()[-1]) for output in done)
    for which in ("float32", "bfloat16"):
        ratio = found[which] / found["adascale_a"]
        table.add(
            f"peak memory of scoring a batch of {BATCH}, {which}",
            f"{ratio:.2f} × adascale_a ({found[which]:.0f} of {found['adascale_a']:.0f} MB)",
            "≤ 0.8 ×" if which == "float32" else "",
            ratio <= 0.8 if which == "float32" else None,
        )

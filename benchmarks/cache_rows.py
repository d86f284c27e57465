"""Rows about the feature cache and the memory allocator."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

import numpy as np
from measure import Table, quiet
from torch import nn
from torch.utils.data import DataLoader

from openood_adascale import MSP, AdaSCALE, Benchmark, evaluate, feature_cache
from openood_adascale.detectors.registry import METHODS

KEPT = """
import statistics, sys, time, torch, torchvision
from openood_adascale import AdaSCALE
from openood_adascale.memory import keep_memory
if sys.argv[2] == "kept":
    assert keep_memory()
torch.manual_seed(0)
detector = AdaSCALE(getattr(torchvision.models, sys.argv[1])().eval())
detector.fit([torch.randn(16, 3, 224, 224)], progress=False)
images, times = torch.randn(32, 3, 224, 224), []
for _ in range(4):
    start = time.perf_counter()
    detector.score(images)
    times.append(time.perf_counter() - start)
print(statistics.median(times[1:]))
"""


def filling(table: Table, network: nn.Module, loader: DataLoader, repeats: int) -> None:
    """Measure scoring a loader into an empty cache against scoring it without one, and compare the scores."""
    times: dict[bool, list[float]] = {False: [], True: []}
    scores = {}
    for _ in range(repeats):
        for cached in times:
            with tempfile.TemporaryDirectory() as folder, feature_cache(folder if cached else False):
                detector = MSP(network)
                start = time.perf_counter()
                scores[cached] = quiet(lambda d=detector: d.predict_loader(loader, False))[1]
                times[cached].append(time.perf_counter() - start)
                if cached:
                    again = quiet(lambda d=detector: d.predict_loader(loader, False))[1]
    overhead = 100 * (median(times[True]) / median(times[False]) - 1)
    table.add(
        f"filling the cache, {len(loader.dataset)} images (MSP, ResNet-18, 32×32)",
        f"{overhead:+.1f} % ({median(times[True]):.2f} s, {median(times[False]):.2f} s)",
        "≤ 5 %",
        overhead <= 5,
    )
    largest = max(float(np.abs(scores[False] - found).max()) for found in (scores[True], again))
    table.add("scores from the cache, largest difference", f"{largest:.1e}", "0", largest == 0)


def passes(table: Table, network: nn.Module, benchmark: dict[str, Any]) -> None:
    """Count the images through the network: eight methods together, AdaSCALE alone, and again from the cache."""
    loaders = Benchmark(
        benchmark["test"],
        {"digits": benchmark["ood"]["digits 6, 7"]},
        {"photos": benchmark["ood"]["photos"]},
        benchmark["val"],
        benchmark["ood_val"],
        benchmark["train"],
    )
    seen: list[int] = []
    convolve = nn.Conv2d.forward

    def counting(layer: nn.Conv2d, images: Any) -> Any:
        if layer.in_channels == 3:
            seen.append(len(images))
        return convolve(layer, images)

    nn.Conv2d.forward = counting

    def count(methods: dict[str, Any], cache_dir: Any) -> int:
        seen.clear()
        quiet(lambda: evaluate(methods, loaders, progress=False, cache_dir=cache_dir))
        return sum(seen)

    def eight() -> dict[str, Any]:
        return {name: method.detector(network, **method.defaults) for name, method in METHODS.items()}

    with tempfile.TemporaryDirectory() as folder:
        alone = count({"adascale": AdaSCALE(network)}, False)
        together, again = count(eight(), folder), count(eight(), folder)
    nn.Conv2d.forward = convolve
    training = len(benchmark["train"].dataset)
    table.add(
        "evaluate: images through the network, eight methods together and AdaSCALE alone",
        f"{together}, {alone}; of the former {training} are training images, which AdaSCALE does not read",
        "as many but for those",
        together - training <= alone + 2,
    )
    table.add("the same again, from the cache", str(again), "0", again == 0)


def kept_memory(table: Table, repeats: int) -> None:
    """Measure AdaSCALE on 32 images on a CPU with freed memory kept and given back."""
    for name, target in (("mobilenet_v2", 1.5), ("resnet50", 1.1)):
        times: dict[str, list[float]] = {"kept": [], "given back": []}
        for _ in range(max(3, repeats - 2)):
            for word, taken in times.items():
                command = [sys.executable, "-c", KEPT, name, word]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                taken.append(float(done.stdout))
        kept, back = median(times["kept"]), median(times["given back"])
        table.add(
            f"AdaSCALE scoring 32 images at 224×224, {name}, freed memory kept",
            f"{back / kept:.2f} × faster than given back ({kept:.2f} s, {back:.2f} s)",
            f"≥ {target} ×",
            back / kept >= target,
        )

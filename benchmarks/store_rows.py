"""Rows about the store: a whole comparison by OpenOOD's script, filling and reading, and memory that is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from data import bench
from measure import Table, quiet
from torch import nn
from torch.utils.data import DataLoader

from openood_adascale import MSP, AdaSCALE, Benchmark, evaluate, using_store
from openood_adascale.detectors.registry import METHODS

BASELINES = (
    "msp", "mls", "ebo", "gen", "klm", "temp_scaling", "gradnorm", "react", "ash", "scale", "vra", "dice", "she", "knn",
    "nnguide", "fdbd", "nci", "relation", "residual", "cfood",
)  # fmt: skip
OURS = ("adascale", "adascale_logit", "optfs")
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


def comparison(table: Table, data: Path, checkpoint: Path, openood: Path) -> None:
    """OpenOOD's script, once per method in a process each, against all in one; without a store, and with one filled."""
    with tempfile.TemporaryDirectory() as folder:
        checkout, store = Path(folder) / "OpenOOD", Path(folder) / "store"
        bench.copy_checkout(openood, checkout)
        shutil.copytree(data, checkout / "data", dirs_exist_ok=True)

        def run(*command: Any, runs: str, **env: str) -> float:
            root = checkout / "results" / runs
            (root / "s0").mkdir(parents=True, exist_ok=True)
            shutil.copy(checkpoint, root / "s0" / "best.ckpt")
            path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
            full = {**os.environ, **env, "PYTHONPATH": path}
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, *map(str, command), "--root", str(root), "--save-csv"],
                cwd=checkout, env=full, check=True, capture_output=True,
            )  # fmt: skip
            return time.perf_counter() - start

        names = (*BASELINES, *OURS)
        alone = sum(
            run("scripts/eval_ood.py", "--postprocessor", name, runs="alone", OPENOOD_ADASCALE_STORE="off")
            for name in names
        )
        together = ["-m", "openood_adascale", "run", "--postprocessors", ",".join(names), "--store", store]
        first = run(*together, "scripts/eval_ood.py", runs="first")
        second = run(*together, "scripts/eval_ood.py", runs="second")
        differ = max(_difference(checkout / "results", name) for name in names if name != "cfood")
    what = (
        f"{len(BASELINES)} OpenOOD baselines, {', '.join(OURS)}, searches included (eval_ood.py, a ResNet-18)"
    )
    for state, taken, target in (("empty", first, 10), ("filled", second, 15)):
        table.add(
            f"{what}: store {state}",
            f"{alone / taken:.1f} × faster than one after another ({taken:.0f} s, {alone:.0f} s)",
            f"≥ {target} ×",
            alone / taken >= target,
        )
    table.add(
        "the same: largest difference of any figure in their tables (but cfood's, which draws without a seed)",
        f"{differ:.2f} points",
        "0 to the last digit",
        differ == 0,
    )


def _difference(results: Path, name: str) -> float:
    def figures(runs: str) -> np.ndarray:
        lines = (results / runs / "ood" / f"{name}.csv").read_text(encoding="utf-8").splitlines()[1:]
        return np.array([[float(cell.split(" ± ")[0]) for cell in line.split(",")[1:]] for line in lines])

    return float(np.abs(figures("alone") - figures("first")).max())


def filling(table: Table, network: nn.Module, loader: DataLoader, repeats: int) -> None:
    """Scoring a loader into an empty store against without one; and the scores that come out of it."""
    times: dict[bool, list[float]] = {False: [], True: []}
    scores = {}
    for _ in range(repeats):
        for stored in times:
            with tempfile.TemporaryDirectory() as folder, using_store(folder if stored else False):
                detector = MSP(network)
                start = time.perf_counter()
                scores[stored] = quiet(lambda d=detector: d.predict_loader(loader, False))[1]
                times[stored].append(time.perf_counter() - start)
                if stored:
                    again = quiet(lambda d=detector: d.predict_loader(loader, False))[1]
    overhead = 100 * (median(times[True]) / median(times[False]) - 1)
    table.add(
        f"filling the store on disk, {len(loader.dataset)} images (MSP, ResNet-18, 32×32)",
        f"{overhead:+.1f} % ({median(times[True]):.2f} s, {median(times[False]):.2f} s)",
        "≤ 5 %",
        overhead <= 5,
    )
    largest = max(float(np.abs(scores[False] - found).max()) for found in (scores[True], again))
    table.add("scores through the store, largest difference", f"{largest:.1e}", "float32", largest < 1e-6)


def passes(table: Table, network: nn.Module, benchmark: dict[str, Any]) -> None:
    """Images through the network: the demo's eight methods together, AdaSCALE alone, and again."""
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

    nn.Conv2d.forward = counting  # no hook: what hangs on a network is part of what it is

    def count(methods: dict[str, Any], store: Any) -> int:
        seen.clear()
        quiet(lambda: evaluate(methods, loaders, progress=False, store=store))
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
        f"{together}, {alone}; of the former {training} are training images, which AdaSCALE does not look at",
        "as many but for those",
        together - training <= alone + 2,
    )
    table.add("the same again, from the store", str(again), "0", again == 0)


def kept_memory(table: Table, repeats: int) -> None:
    """AdaSCALE's scoring of 32 images on a CPU, with freed memory kept and given back."""
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

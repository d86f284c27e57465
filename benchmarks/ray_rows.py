"""Rows about Ray: an evaluation by one process of one thread and by two workers, and workers that are killed.

``python ray_rows.py IMAGES WORKERS [KILLS]`` is one such evaluation.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import Table
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from tqdm.auto import tqdm

from openood_adascale import AdaSCALE, Benchmark, evaluate
from openood_adascale.memory import keep_memory
from openood_adascale.parallel import ray_workers

IMAGES = 1920
"""Test and OOD images, in batches of 16."""


class Pictures(Dataset):
    """(3, 96, 96) random images, the same for the same index."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(1_000_000 * self.seed + index)
        return torch.randn(3, 96, 96, generator=generator), index % 10


def loader(count: int, seed: int) -> DataLoader:
    return DataLoader(Pictures(count, seed), batch_size=16)


def one(count: int, workers: int, kills: int = 0) -> None:
    """Evaluate; print the seconds of the evaluation, of Ray's start, and the sum of the scores."""
    torch.set_num_threads(1)
    keep_memory()
    torch.manual_seed(0)
    detector = AdaSCALE(resnet18(num_classes=10).eval())
    detector.fit(loader(64, 1), progress=False)

    def evaluated(images: int) -> Any:
        part = images // 3
        benchmark = Benchmark(loader(part, 2), {"near": loader(part, 3)}, {"far": loader(part, 4)})
        return evaluate(detector, benchmark, search=False, progress=False, cache_dir=False)

    begun = time.perf_counter()
    with ray_workers(workers) if workers > 1 else nullcontext():
        started = time.perf_counter() - begun
        evaluated(96)  # not counted: libraries load
        stop = threading.Event()
        killer = threading.Thread(target=kill_workers, args=(kills, stop))
        killer.start()
        start = time.perf_counter()
        result = evaluated(count)
        taken = time.perf_counter() - start
        stop.set()
        killer.join()
    total = sum(float(scores.astype(float).sum()) for scores in result.scores.values())
    print(taken, started, total)


def kill_workers(kills: int, stop: threading.Event) -> None:
    """Kill a random Ray worker at random moments."""
    for _ in range(kills):
        if stop.wait(random.uniform(1, 4)):
            return
        found = subprocess.run(["pgrep", "-f", "ray::"], capture_output=True, text=True).stdout.split()
        workers = [int(pid) for pid in found if "IDLE" not in Path(f"/proc/{pid}/cmdline").read_text()]
        if workers:
            subprocess.run(["kill", "-9", str(random.choice(workers))], check=False)


def run(images: int, workers: int, kills: int = 0) -> list[float]:
    command = [sys.executable, __file__, str(images), str(workers), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def two_processes(images: int) -> float:
    """Return the seconds of two processes that share nothing, with half of the images each."""
    command = [sys.executable, __file__, str(images // 2), "1"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return max(float(process.communicate()[0].split()[0]) for process in both)


def on_two_workers(table: Table, repeats: int, images: int = IMAGES) -> None:
    """Compare one process of one thread, two workers of one thread, and two processes that share nothing."""
    times: dict[int, list[float]] = {1: [], 2: []}
    starts, sums, apart = [], set(), []
    for _ in tqdm(range(max(3, repeats - 2)), leave=False):
        for workers, taken in times.items():
            seconds, start, total = run(images, workers)
            taken.append(seconds)
            sums.add(total)
            if workers == 2:
                starts.append(start)
        apart.append(two_processes(images))
    alone, together = median(times[1]), median(times[2])
    table.add(
        f"AdaSCALE over {images} images (ResNet-18, 96×96), two Ray workers of one thread against one process",
        f"{alone / together:.2f} × faster ({together:.1f} s, {alone:.1f} s; start-up {median(starts):.1f} s besides); "
        f"two processes that share nothing: {alone / median(apart):.2f} × ({median(apart):.1f} s)",
        "≥ 1.85 ×",
        alone / together >= 1.85,
    )
    table.add(
        "the same: scores", "equal" if len(sums) == 1 else f"sums {sorted(sums)}", "equal", len(sums) == 1
    )


if __name__ == "__main__":
    one(*(int(word) for word in sys.argv[1:]))

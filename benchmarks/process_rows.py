"""The row about processes: the same evaluation by one process of one thread and by two, and what it costs an image.

Run by itself (``python process_rows.py IMAGES``), as torchrun would, it is one of these processes.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from measure import Table
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from processes import finish, run, start

from openood_adascale import AdaSCALE, Benchmark, evaluate
from openood_adascale.memory import keep_memory

IMAGES = 1920
"""Test and OOD images, in batches of 16 that take two processes turns."""


class Pictures(Dataset):
    """(3, 96, 96), drawn from their place, in a moment."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(1_000_000 * self.seed + index)
        return torch.randn(3, 96, 96, generator=generator), index % 10


def loader(count: int, seed: int) -> DataLoader:
    return DataLoader(Pictures(count, seed), batch_size=16)


def one(count: int) -> None:
    """Evaluate; process 0 prints seconds and scores' sum."""
    torch.set_num_threads(1)
    keep_memory()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    detector = AdaSCALE(resnet18(num_classes=10).eval())
    detector.fit(loader(64, 1), progress=False)

    def evaluated(images: int) -> Any:
        part = images // 3
        benchmark = Benchmark(loader(part, 2), {"near": loader(part, 3)}, {"far": loader(part, 4)})
        return evaluate(detector, benchmark, search=False, progress=False, store=False)

    evaluated(96)  # not counted: libraries load
    if dist.is_initialized():
        dist.barrier()
    start = time.perf_counter()
    result = evaluated(count)
    taken = time.perf_counter() - start
    if int(os.environ.get("RANK", "0")) == 0:
        print(taken, sum(float(scores.astype(float).sum()) for scores in result.scores.values()))


def strangers(images: int) -> float:
    """Seconds of two processes that know nothing of each other and have half the images each: what the machine allows."""
    both = [start(1, [__file__, images // 2], ordinary=True)[0] for _ in range(2)]
    return max(float(printed.split()[-2]) for _, printed, _ in finish(both, timeout=1200))


def on_two_processes(table: Table, repeats: int, images: int = IMAGES) -> None:
    """In turn one process of one thread, two of a group, and two strangers."""
    times: dict[int, list[float]] = {1: [], 2: []}
    sums, apart = set(), []
    for _ in tqdm(range(max(3, repeats - 2)), leave=False):
        for number, taken in times.items():
            printed = run(number, [__file__, images], timeout=1200, ordinary=True).split()
            taken.append(float(printed[-2]))
            sums.add(printed[-1])
        apart.append(strangers(images))
    alone, together = median(times[1]), median(times[2])
    table.add(
        f"AdaSCALE over {images} images (ResNet-18, 96×96), two processes of one thread against one",
        f"{alone / together:.2f} × faster ({together:.1f} s, {alone:.1f} s); "
        f"two that share nothing, with half the images each: {alone / median(apart):.2f} × ({median(apart):.1f} s)",
        "≥ 1.8 ×",
        alone / together >= 1.8,
    )
    table.add(
        "the same: scores", "equal" if len(sums) == 1 else f"sums {sorted(sums)}", "equal", len(sums) == 1
    )


if __name__ == "__main__":
    one(int(sys.argv[1]))

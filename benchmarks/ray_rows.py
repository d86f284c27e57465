"""Rows about Ray: two workers of one thread against one process, and against two processes that share nothing.

A process of its own runs each measurement:

    python benchmarks/ray_rows.py evaluate WORKERS IMAGES     # prints seconds, seconds of Ray's start, sum of the scores
    python benchmarks/ray_rows.py score WORKERS SOURCE ...    # prints seconds of score_dataset
    python benchmarks/ray_rows.py kill 100                    # kills workers at random moments and compares the scores
"""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import Table
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from torchvision.transforms.functional import pil_to_tensor
from tqdm.auto import tqdm

from openood_adascale import AdaSCALE, Benchmark, evaluate
from openood_adascale.evaluation.bulk import score_dataset
from openood_adascale.memory import keep_memory
from openood_adascale.parallel import ray_pool, ray_workers

IMAGES = 1920
"""Images of an evaluation, in batches of 16."""
FILES, ROWS = 2, 1500
"""Parquet files, and JPEGs in each."""


class Pictures(Dataset):
    """(3, size, size) random images, the same for the same index."""

    def __init__(self, count: int, seed: int, size: int = 96) -> None:
        self.count, self.seed, self.size = count, seed, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(1_000_000 * self.seed + index)
        return torch.randn(3, self.size, self.size, generator=generator), index % 10


class DeadlyPictures(Pictures):
    """Pictures that kill the worker which receives them, at a random moment, as long as there are files in a folder."""

    def __init__(self, count: int, seed: int, folder: Path) -> None:
        super().__init__(count, seed, 16)
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        threading.Timer(random.expovariate(1 / 2), self.kill).start()

    def kill(self) -> None:
        for file in self.folder.iterdir():
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def loader(pictures: Dataset) -> DataLoader:
    return DataLoader(pictures, batch_size=16)


def detector_of(network: nn.Module, pictures: Dataset) -> AdaSCALE:
    return AdaSCALE(network.eval()).fit(loader(pictures), progress=False)


def evaluated(detector: AdaSCALE, *sets: Dataset) -> Any:
    test, near, far = map(loader, sets)
    benchmark = Benchmark(test, {"near": near}, {"far": far})
    return evaluate(detector, benchmark, search=False, progress=False, cache_dir=False)


def run_evaluate(workers: int, images: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    detector = detector_of(resnet18(num_classes=10), Pictures(64, 1))
    start = time.perf_counter()
    with ray_workers(workers) if workers > 1 else nullcontext():
        started = time.perf_counter() - start
        evaluated(detector, *(Pictures(32, seed) for seed in (2, 3, 4)))  # not counted: libraries load
        start = time.perf_counter()
        result = evaluated(detector, *(Pictures(images // 3, seed) for seed in (2, 3, 4)))
        taken = time.perf_counter() - start
    total = sum(float(scores.astype(float).sum()) for scores in result.scores.values())
    print(taken, started, total)


def run_score(workers: int, sources: list[str]) -> None:
    torch.set_num_threads(1)
    folder = Path(sources[0]).parent
    settings = {"network": resnet18(num_classes=10), "transform": to_tensor, "progress": False}

    def score(found: list[str], output: str) -> float:
        start = time.perf_counter()
        score_dataset(folder / "detector.safetensors", found, f"{output}-{os.getpid()}", **settings)
        return time.perf_counter() - start

    settings["network"].load_state_dict(torch.load(folder / "network.pth"))
    with ray_workers(workers) if workers > 1 else nullcontext():
        score([str(folder / "few.parquet")], str(folder / "few"))  # not counted: libraries load
        print(score(sources, str(folder / "scores")))


def run_kill(kills: int) -> None:
    """Evaluate until so many workers were killed, and print how many evaluations had other scores than in one process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )
    detector = detector_of(network, Pictures(64, 1, 16))
    ray_pool.TRIES = kills  # the same piece may be hit again
    with tempfile.TemporaryDirectory() as folder:
        sets = [DeadlyPictures(2000, seed, Path(folder)) for seed in (2, 3, 4)]
        alone = evaluated(detector, *sets).scores
        for number in range(kills):
            (Path(folder) / str(number)).touch()
        rounds = wrong = 0
        with ray_workers(2):
            while any(Path(folder).iterdir()):
                scores = evaluated(detector, *sets).scores
                rounds += 1
                wrong += any(not np.array_equal(scores[name], alone[name]) for name in alone)
                left = len(list(Path(folder).iterdir()))
                print(
                    f"{kills - left} workers killed, {rounds} evaluations, {wrong} of them wrong", flush=True
                )


def to_tensor(image: Image.Image) -> torch.Tensor:
    return pil_to_tensor(image).float() / 255


def write_images(folder: Path, rows: int) -> list[str]:
    """Write Parquet files of JPEGs, a few.parquet, a detector and its network."""
    import pyarrow as pa
    from pyarrow import parquet

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(0)

    def jpeg() -> bytes:
        left, top = rng.integers(0, 300, 2)
        file = io.BytesIO()
        photos[rng.integers(len(photos))].crop((left, top, left + 96, top + 96)).save(
            file, "JPEG", quality=90
        )
        return file.getvalue()

    def write(name: str, count: int) -> str:
        table = pa.table({"image": [jpeg() for _ in range(count)]})
        parquet.write_table(table, folder / name, row_group_size=100)
        return str(folder / name)

    torch.manual_seed(0)
    network = resnet18(num_classes=10)
    torch.save(network.state_dict(), folder / "network.pth")
    detector_of(network, Pictures(64, 1)).save(folder / "detector.safetensors")
    write("few.parquet", 64)
    return [write(f"{number}.parquet", rows) for number in range(FILES)]


def start(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def numbers(process: subprocess.Popen[str]) -> list[float]:
    found = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{process.args}: exit status {process.returncode}")
    return [float(word) for word in found.splitlines()[-1].split()]


def on_two_workers(table: Table, repeats: int, images: int = IMAGES, rows: int = ROWS) -> None:
    """Compare one process of one thread, two workers of one thread, and two processes that share nothing."""
    rounds = range(max(1, repeats - 2))
    alone, together, apart = [], [], []
    for _ in tqdm(rounds, leave=False):
        alone.append(numbers(start("evaluate", 1, images)))
        together.append(numbers(start("evaluate", 2, images)))
        halves = [start("evaluate", 1, images // 2) for _ in range(2)]
        apart.append(max(numbers(half)[0] for half in halves))
    one, two = (median(taken for taken, _, _ in runs) for runs in (alone, together))
    table.add(
        f"AdaSCALE over {images} images (ResNet-18, 96×96), two Ray workers of one thread against one process",
        f"{one / two:.2f} × faster ({two:.1f} s, {one:.1f} s; start-up "
        f"{median(started for _, started, _ in together):.1f} s besides); "
        f"two processes that share nothing: {one / median(apart):.2f} × ({median(apart):.1f} s)",
        "≥ 1.85 ×",
        one / two >= 1.85,
    )
    sums = {total for runs in (alone, together) for _, _, total in runs}
    table.add("the same: scores", "equal" if len(sums) == 1 else f"sums {sums}", "equal", len(sums) == 1)
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder), rows)
        apart, bulk = [], []
        for _ in tqdm(rounds, leave=False):
            halves = [start("score", 1, file) for file in files]
            apart.append(max(numbers(half)[0] for half in halves))
            bulk.append(numbers(start("score", 2, *files))[0])
    plain, workers = median(apart), median(bulk)
    count = FILES * rows
    table.add(
        f"bulk scoring of {count} JPEGs of 96×96 in Parquet, two Ray workers against two processes that share nothing",
        f"{plain / workers:.2f} × ({count / workers:.0f} images/s, {count / plain:.0f} images/s)",
        "≥ 0.8 ×",
        plain / workers >= 0.8,
    )


if __name__ == "__main__":
    keep_memory()
    what, count, *rest = sys.argv[1:]
    if what == "evaluate":
        run_evaluate(int(count), int(rest[0]))
    elif what == "kill":
        run_kill(int(count))
    else:
        run_score(int(count), rest)

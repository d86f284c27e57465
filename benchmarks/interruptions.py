"""Kills evaluations at random moments, and runs them again: what is there must be right, and the rerun must end right.

    python benchmarks/interruptions.py [--runs 100] [--processes 1] [--seed 0]

With several processes (torch.distributed, gloo, one thread each) a random one of them is killed; the others have to end by
themselves, with an error. Each run evaluates all methods on folders of small pictures, with a search, a store, tables and a
report. Ends with 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from processes import environment, free_port

from openood_adascale.evidence.disk import open_store
from openood_adascale.evidence.store import SHARD

NETWORK = """
import torch
from torch import nn
from torchvision import transforms

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 32, 5, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU(),
                                      nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(256, 5)

    def forward(self, images):
        return self.fc(self.features(images))

def network():
    torch.manual_seed(0)
    return Net(), transforms.Compose([transforms.Resize(40), transforms.ToTensor()])
"""
SETS = {"id": 300, "val": 200, "oodval": 150, "near": 250, "far": 250}
PRELOADED = (
    "cli.evaluate",
    "evaluation.evaluate",
    "evaluation.own_images",
    "reporting.report",
    "distributed.start",
)
TIMEOUT = 15
"""Seconds that the processes are told a batch may take; signs of life and the end of the others take some more."""


def pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for place, (name, count) in enumerate(SETS.items()):
        (folder / name).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            pixels[:, :, number % 3] //= 1 + place
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    (folder / "net.py").write_text(NETWORK)


def command(folder: Path, out: str, store: str) -> list[Any]:
    return [
        "evaluate", "--network", folder / "net.py:network", "--id", folder / "id",
        "--val", folder / "val", "--ood-val", folder / "oodval", "--near", f"n={folder / 'near'}",
        "--far", f"f={folder / 'far'}", "--batch-size", "16", "--workers", "0", "--quiet", "--store", folder / store,
        "--out", folder / out,
    ]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """What an evaluation is about, of what it leaves."""
    found = [path for path in folder.rglob("*.csv") if not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


def execute(arguments: list[str], told: dict[str, str], said: Path) -> None:
    """In a process of its own: the command, with what it prints in a file."""
    os.environ.update(told)
    with (
        open(said, "w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        from openood_adascale.cli import main as run

        raise SystemExit(run(arguments))


class Trial:
    """One folder of pictures, the right results, and evaluations that are killed."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder, self.processes = folder, processes
        # Its processes have imported everything when they start, so that what is interrupted is work.
        os.environ["OMP_NUM_THREADS"] = "1"
        self.fork = multiprocessing.get_context("forkserver")
        self.fork.set_forkserver_preload([f"openood_adascale.{name}" for name in PRELOADED])
        pictures(folder)
        self.run("warm", "store of the right")
        shutil.rmtree(folder / "store of the right")
        begun = time.monotonic()
        self.run("right", "store of the right")
        self.seconds = time.monotonic() - begun
        self.right = contents(folder / "right")
        self.wrong: list[str] = []
        self.ends: list[float] = []
        self.killed = 0

    def begin(self, out: str, store: str) -> list[Any]:
        arguments, port = [str(part) for part in command(self.folder, out, store)], free_port()
        started = []
        for rank in range(self.processes):
            told = environment(self.processes, rank, port, OPENOOD_ADASCALE_TIMEOUT=str(TIMEOUT))
            started.append(
                self.fork.Process(target=execute, args=(arguments, told, self.folder / f"said {rank}"))
            )
            started[-1].start()
        return started

    def finish(self, started: list[Any], timeout: float) -> list[int | None]:
        """Exit statuses; None of those that had to be killed."""
        latest = time.monotonic() + timeout
        for process in started:
            process.join(max(0.0, latest - time.monotonic()))
        found = [process.exitcode for process in started]
        for process in started:
            process.kill()
            process.join()
        return found

    def said(self) -> str:
        return (self.folder / "said 0").read_text(encoding="utf-8")[-1500:]

    def run(self, out: str, store: str) -> None:
        if any(self.finish(self.begin(out, store), timeout=300)):
            raise SystemExit(f"an evaluation that nobody killed failed:\n{self.said()}")

    def one(self, rng: random.Random) -> None:
        """Kill one at a random moment, look at what it left, and run it again."""
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        if rng.random() < 0.7:  # else the store of an earlier run is there
            shutil.rmtree(self.folder / "store", ignore_errors=True)
        moment, victim = rng.uniform(0, 1.05 * self.seconds), rng.randrange(self.processes)
        running = self.begin("out", "store")
        time.sleep(moment)
        running[victim].kill()
        killed = time.monotonic()
        told = f"process {victim} killed after {moment:.2f} s"
        done = self.finish(running, timeout=4 * TIMEOUT)
        if None in done:
            self.wrong.append(f"{told}: the others did not end: {done}")
            return
        self.ends.append(time.monotonic() - killed)
        self.killed += done[victim] == -signal.SIGKILL
        self.look(told, whole=not any(done))
        if any(self.finish(self.begin("out", "store"), timeout=300)):
            self.wrong.append(f"{told}: the rerun failed: {self.said()}")
        self.look(f"{told}: after the rerun", whole=True)

    def look(self, told: str, whole: bool) -> None:
        found = contents(self.folder / "out")
        for name, content in found.items():
            if self.right.get(name) != content:
                self.wrong.append(f"{told}: {name} is wrong")
        if whole and set(found) != set(self.right):
            self.wrong.append(f"{told}: {sorted(set(self.right) - set(found))} are missing")
        if not (self.folder / "store" / "openood_adascale_store.json").exists():
            return
        for entry in open_store(self.folder / "store"):
            for path in entry.folder.glob("*.safetensors"):
                part, _, number = path.stem.rpartition("-")
                rows = min(SHARD, int((entry.about or {})["N"]) - SHARD * int(number))
                if not entry.has(part, int(number), rows):
                    self.wrong.append(f"{told}: {path.name} is not whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), options.processes)
        with contextlib.suppress(KeyboardInterrupt):  # what was seen until then is told
            for _ in tqdm(range(options.runs)):
                trial.one(rng)
    print(
        f"{len(trial.ends)} runs of {options.processes} process(es), {trial.seconds:.1f} s each where nobody is killed: "
        f"{trial.killed} killed before their end; {len(trial.wrong)} wrong; "
        f"the others ended {statistics.median(trial.ends):.1f} s after the kill "
        f"(median), {max(trial.ends):.1f} s at most (told to wait {TIMEOUT} s)"
    )
    print("\n".join(trial.wrong))
    raise SystemExit(bool(trial.wrong))


if __name__ == "__main__":
    main()

"""Measures 20 baselines of OpenOOD, AdaSCALE-A, AdaSCALE-L and OptFS by ``eval_ood.py``, searches included.

One process with ``run --postprocessors``, with an empty and with a filled cache, against one script after another:

    python benchmarks/openood_baselines.py [--train 60] [--val 40] [--test 30] [--workers 0] [--names msp,knn]

Images are scikit-learn's digits and photos, the network is OpenOOD's ResNet18_32x32. Needs the extras `test` and `openood`.
The tables of the three ways are compared; the exit status is 1 if a target is missed or a table differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from data import bench, train_digits

BASELINES = (
    "msp", "ebo", "gen", "klm", "temp_scaling", "gradnorm", "react", "ash", "scale", "vra", "dice", "knn", "nnguide",
    "fdbd", "nci", "relation", "residual", "mds", "rmds", "cfood",
)  # fmt: skip
OURS = ("adascale", "adascale_logit", "optfs")
UNSEEDED = {"cfood"}
EMPTY, FILLED = 10, 20
"""Least ratios to one script after another."""


def prepare(root: Path, options: argparse.Namespace) -> Path:
    """Copy the checkout, write images of ten classes, train, and return the directory of the training run."""
    found = bench.find_openood()
    if found is None:
        sys.exit("OpenOOD is not there: set OPENOOD_ROOT to a checkout of it")
    bench.copy_checkout(found, root)
    train, val = options.train, options.val
    splits = (slice(0, train), slice(train, train + val), slice(train + val, train + val + options.test))
    bench.write_cifar10_benchmark(root / "data", splits)
    # mds and rmds need each of the ten classes in the training images.
    more = [
        (image, 6 + number)
        for number, digit in enumerate(bench.digit_images()[1])
        for image, _ in digit[50 : 50 + train]
    ]
    bench.save_images(more, root / "data", "images_classic", "cifar10/more", ["more.txt"])
    lists = root / "data/benchmark_imglist"
    with open(lists / "cifar10/train_cifar10.txt", "a") as file:
        file.write((lists / "more.txt").read_text())
    results = root / "results/digits"
    (results / "s0").mkdir(parents=True)
    with bench.importable(root):
        from openood.networks.resnet18_32x32 import ResNet18_32x32
    torch.manual_seed(0)
    net = ResNet18_32x32(num_classes=10)
    train_digits(net, *bench.cifar10_batch(root / "data", "train"), steps=40, learning_rate=0.03)
    torch.save(net.state_dict(), results / "s0/best.ckpt")
    return results


def timed(checkout: Path, arguments: list[str], workers: int) -> float:
    """Run Python in the checkout and return the seconds it took."""
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    variables = {"PYTHONPATH": path, "OPENOOD_ADASCALE_WORKERS": str(workers)}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def tables(results: Path) -> dict[str, str]:
    """Return the tables of a run, and remove all that it wrote."""
    found = {path.stem: path.read_text() for path in (results / "ood").glob("*.csv")}
    shutil.rmtree(results / "ood")
    shutil.rmtree(results / "s0/postprocessors", ignore_errors=True)
    return found


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=60, help="training images per class (default: 60)")
    parser.add_argument("--val", type=int, default=40, help="ID validation images per class (default: 40)")
    parser.add_argument("--test", type=int, default=30, help="ID test images per class (default: 30)")
    parser.add_argument(
        "--names", default=",".join([*BASELINES, *OURS]), help="postprocessors (default: all 23)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="reading processes per loader, in all ways; eval_ood.py has 8 (default: 0)",
    )
    options = parser.parse_args()
    names = options.names.split(",")
    with tempfile.TemporaryDirectory() as folder:
        checkout, cache = Path(folder) / "OpenOOD", Path(folder) / "cache"
        results = prepare(checkout, options)
        script = ["scripts/eval_ood.py", "--root", str(results), "--save-csv"]
        many = [
            "-m",
            "openood_adascale",
            "run",
            "--cache-dir",
            str(cache),
            "--postprocessors",
            options.names,
            *script,
        ]
        seconds, found = {}, {}
        for way in ("empty cache", "filled cache"):
            seconds[way] = timed(checkout, many, options.workers)
            found[way] = tables(results)
            print(f"{len(names)} postprocessors in one process, {way}: {seconds[way]:.1f} s", flush=True)
        seconds["one"] = 0.0
        for name in names:
            taken = timed(checkout, [*script, "--postprocessor", name], options.workers)
            seconds["one"] += taken
            print(f"  {name} alone: {taken:.1f} s", flush=True)
        found["one"] = tables(results)
        print(f"{len(names)} postprocessors one after another: {seconds['one']:.1f} s")
    fine = True
    for way, target in (("empty cache", EMPTY), ("filled cache", FILLED)):
        ratio = seconds["one"] / seconds[way]
        fine = fine and ratio >= target
        print(f"{way}: {ratio:.1f} times as fast (target: {target})")
    for name in sorted({*names} - UNSEEDED):
        if not found["one"][name] == found["empty cache"][name] == found["filled cache"][name]:
            fine = False
            print(f"{name}: the tables differ")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())

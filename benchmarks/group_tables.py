"""Holds the tables that OpenOOD's script leaves when many processes serve it against those of one process.

    python benchmarks/group_tables.py [--processes 2 3 8] [--names msp odin ...]

On the tests' OpenOOD benchmark, every process with one thread. Ends with 1 where any figure differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data import bench, runs
from store_rows import BASELINES, OURS

WITH_IMAGES = ("rankfeat",)
"""Of OpenOOD's, one that needs the images and takes no minutes; more by ``--names``."""
UNSEEDED = ("cfood",)
"""Draw other numbers in every run, by one process, too."""


def tables(checkout: Path, names: list[str], processes: int) -> tuple[dict[str, str], float]:
    """By method, the CSV that the script has left; and the seconds that it took."""
    root = checkout / "results" / f"by_{processes}"
    (root / "s0").mkdir(parents=True)
    (root / "s0" / "best.ckpt").write_bytes((checkout / "results/trained/s0/best.ckpt").read_bytes())
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = ["-m", "openood_adascale", "run", "--postprocessors", ",".join(names), "scripts/eval_ood.py"]
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *(many if processes > 1 else []), *command, "--root", str(root), "--save-csv"],
        cwd=checkout, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{processes} process(es) ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found = {name: (root / "ood" / f"{name}.csv").read_text(encoding="utf-8") for name in names}
    return found, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3, 8])
    parser.add_argument("--names", nargs="+", default=[*BASELINES, *OURS, *WITH_IMAGES])
    options = parser.parse_args()
    names = [name for name in options.names if name not in UNSEEDED]
    openood = bench.find_openood()
    if openood is None:
        raise SystemExit("OpenOOD is not there: set OPENOOD_ROOT to a checkout of it")
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "OpenOOD"
        bench.copy_checkout(openood, checkout)
        bench.write_cifar10_benchmark(checkout / "data")
        runs.train_runs(checkout, checkout / "results" / "trained")
        alone, seconds = tables(checkout, names, 1)
        print(f"{len(names)} methods by one process: {seconds:.0f} s", flush=True)
        for processes in options.processes:
            together, seconds = tables(checkout, names, processes)
            other = [name for name in names if together[name] != alone[name]]
            differing += len(other)
            verdict = (
                "all tables equal, byte for byte" if not other else f"other tables of {', '.join(other)}"
            )
            print(f"by {processes}: {seconds:.0f} s; {verdict}", flush=True)
            for name in other:
                print(f"{name} by one:\n{alone[name]}\nby {processes}:\n{together[name]}")
    raise SystemExit(bool(differing))


if __name__ == "__main__":
    main()

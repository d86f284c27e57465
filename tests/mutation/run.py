"""Mutation testing of the core: a sample of small wrong changes, of which the tests must notice each.

The changes are those of mutmut (``pip install mutmut``), which makes them; what it would do with them, all in one file and
all at once, digests of the package's files and subprocess tests do not bear. Here each is made alone, in a copy of the
project, and the tests that run the changed function are run, quick ones first, in a process forked from one that has torch
loaded. Which they are, pytest-cov finds out in a first run of all of them::

    python tests/mutation/run.py --sample 400 --seed 0 --out FOLDER
    python tests/mutation/run.py --out FOLDER --again            # its survivors, after tests were written
    python tests/mutation/run.py --only evidence/rows.py:17      # one, with what the tests print
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from covering import Covering
from mutants import PACKAGE, ROOT, Changed, Mutant, found_again, sample

TESTS = [
    "tests/test_equations.py",
    "tests/test_metrics.py",
    "tests/evidence",
    "tests/detectors",
    "tests/evaluation/test_tables.py",
    "tests/evaluation/test_evaluate.py",
]
"""The tests that have to notice."""
PATIENCE = 300.0
"""Seconds after which a change counts as noticed: something goes on forever."""
KILLED, SURVIVED, TIMEOUT = "killed", "survived", "timeout"


class Copy:
    """The project in a folder of its own, in which one change at a time is made and tested."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        keep_out = shutil.ignore_patterns(
            ".git", "site", "build", "dist", "*.egg-info", "__pycache__", ".*_cache"
        )
        shutil.copytree(ROOT, folder, ignore=keep_out)

    def test(self, mutant: Mutant, tests: Sequence[str], output: Path) -> tuple[str, float]:
        """Whether ``tests`` notice the change, and in how many seconds; what they print is in ``output``."""
        path = self.folder / PACKAGE / mutant.file
        begun = time.monotonic()
        try:
            path.write_text(mutant.after)
            status = self._forked(["-x", *tests], output)
        finally:
            path.write_text(mutant.before)
        return status, time.monotonic() - begun

    def unchanged(self, kept: Path) -> Covering:
        """All tests without a change: they have to pass, alone in their process as they are. What they run is ``kept``."""
        coverage, seconds, output = (kept / name for name in ("coverage", "unchanged.xml", "unchanged.txt"))
        watch = [
            f"--cov={PACKAGE}",
            "--dist=no",
            "--cov-context=test",
            "--cov-report=",
            f"--junitxml={seconds}",
        ]
        if not coverage.exists():
            begun = time.monotonic()
            if self._forked([*watch, *TESTS], output, 10 * PATIENCE) != SURVIVED:
                raise SystemExit(f"the tests fail without a change:\n{output.read_text()[-3000:]}")
            (self.folder / ".coverage").replace(coverage)
            print(f"unchanged: {time.monotonic() - begun:.0f} s", flush=True)
        return Covering(self.folder, coverage, seconds)

    def _forked(self, arguments: Sequence[str], output: Path, patience: float = PATIENCE) -> str:
        child = os.fork()
        if child == 0:
            self._run(arguments, output)
        deadline = time.monotonic() + patience
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return TIMEOUT
            time.sleep(0.05)
        return SURVIVED if status == 0 else KILLED

    def _run(self, arguments: Sequence[str], output: Path) -> None:
        os.setsid()
        status = 70
        try:
            for number, mode in ((1, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), (2, os.O_WRONLY | os.O_APPEND)):
                os.dup2(os.open(output, mode), number)
            os.chdir(self.folder)
            os.environ["PYTHONPATH"] = str(self.folder)
            sys.path.insert(0, str(self.folder))
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            import pytest

            always = ["-q", "-n0", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
            status = int(pytest.main([*always, *arguments]))
        finally:
            sys.stdout.flush()
            os.killpg(0, signal.SIGKILL) if status == 70 else os._exit(status)


def load() -> None:
    """Have in memory what every test would load, but nothing of this package."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    for name in (
        "torch",
        "torchvision",
        "numpy",
        "pandas",
        "scipy.stats",
        "sklearn.metrics",
        "hypothesis",
        "pytest",
    ):
        __import__(name)
    del os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"]
    assert PACKAGE not in sys.modules


def run(mutants: Sequence[Mutant], processes: int, out: Path) -> list[dict[str, object]]:
    """Test each; what is found is written line by line, and what ``out`` has already is not tested again."""
    lines = out / "mutants.jsonl"
    results = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    known = {(one["name"], one["diff"]) for one in results}
    left = [mutant for mutant in mutants if (mutant.name, mutant.diff) not in known]
    total = len(results) + len(left)
    shutil.rmtree(out / "copies", ignore_errors=True)
    copies: Queue[Copy] = Queue()
    for number in range(processes):
        copies.put(Copy(out / "copies" / str(number)))
    covering = copies.queue[0].unchanged(out)

    def one(mutant: Mutant) -> None:
        copy = copies.get()
        output = copy.folder.with_suffix(".txt")
        try:
            status, seconds = copy.test(mutant, covering.tests(mutant), output)
            failed = [
                x
                for x in output.read_text(errors="replace").splitlines()
                if x.startswith(("FAILED", "ERROR"))
            ]
        finally:
            copies.put(copy)
        found = {"name": mutant.name, "status": status, "seconds": round(seconds, 1), "diff": mutant.diff}
        results.append({**found, "by": failed[:1]})
        with lines.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        print(f"{len(results)}/{total} {status} {mutant.name} {seconds:.0f} s", flush=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(one, left))
    shutil.rmtree(out / "copies")
    return results


def tell(results: Sequence[dict[str, object]]) -> None:
    """The survivors, and the figure."""
    for one in results:
        if one["status"] == SURVIVED:
            print(f"\n{one['name']}\n{one['diff']}")
    counts = Counter(str(one["status"]) for one in results)
    noticed = counts[KILLED] + counts[TIMEOUT]
    print(
        f"\n{noticed} of {len(results)} noticed ({100 * noticed / max(1, len(results)):.1f} %): {dict(counts)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, default=400, help="changes, drawn from all there are")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="a folder; a run that was stopped goes on from it")
    parser.add_argument("--again", action="store_true", help="test the survivors in FOLDER once more")
    parser.add_argument("--only", help="one change, such as evidence/rows.py:17")
    arguments = parser.parse_args()
    os.chdir(ROOT)  # where mutmut looks for its settings
    load()
    if arguments.only:
        file, _, number = arguments.only.rpartition(":")
        mutant = Changed(file).mutant(int(number))
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "output.txt")
            status, _ = Copy(Path(folder, "copy")).test(mutant, TESTS, output)
            print(mutant.diff, output.read_text(), status, sep="\n")
        return
    out = (arguments.out or Path(tempfile.mkdtemp())).resolve()
    chosen = survivors(out) if arguments.again else sample(arguments.sample, arguments.seed)
    tell(run(chosen, arguments.processes, out))


def survivors(out: Path) -> list[Mutant]:
    """Those in ``out``, of which it then knows no more, nor which tests run what."""
    lines = out / "mutants.jsonl"
    results = [json.loads(line) for line in lines.read_text().splitlines()]
    shutil.copy(lines, out / "before.jsonl")
    lines.write_text("".join(json.dumps(one) + "\n" for one in results if one["status"] != SURVIVED))
    (out / "coverage").unlink(missing_ok=True)
    found = (found_again(one["name"], one["diff"]) for one in results if one["status"] == SURVIVED)
    return [mutant for mutant in found if mutant is not None]


if __name__ == "__main__":
    main()

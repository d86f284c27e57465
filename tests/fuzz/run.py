"""Random settings, networks, loaders and damaged files until a time or a number is reached; what is wrong is told.

    python tests/fuzz/run.py [--seed 0] [--seconds 30] [--cases N] [--only KIND …] [--case K]

Every case follows from the seed, its kind and its number alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.dont_write_bytecode = True

import torch
from fuzz import file_cases, files, score_cases, settings_cases
from fuzz.watch import run_case
from tqdm.auto import tqdm

Case = Callable[[random.Random, Path], str]
KINDS: dict[str, Case] = {
    "settings": settings_cases.case,
    "scores": score_cases.case,
    "damaged": file_cases.case,
}
"""By name: takes random numbers and a folder that it may write to, and gives in a word what it came to."""
SHOWN = 10
"""Findings of a run that are told in full."""


@dataclass
class Tally:
    """What came out of the cases of one kind."""

    cases: int = 0
    seconds: float = 0.0
    came_to: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[int, str]] = field(default_factory=list)
    """The case's number, and what is wrong."""


def fuzz(
    kinds: Sequence[str], seed: int, seconds: float | None, cases: int | None, first: int = 0
) -> dict[str, Tally]:
    """Run cases, each kind as long as the others, until the time is up or each has had its number."""
    tallies = {kind: Tally() for kind in kinds}
    end = None if seconds is None else time.monotonic() + seconds
    with _in_a_folder() as folder, tqdm(desc="Cases", unit="case", disable=None) as bar:
        if "damaged" in kinds:
            files.prepare()
        while True:
            left = {kind: t for kind, t in tallies.items() if cases is None or t.cases < cases}
            if not left or (end is not None and time.monotonic() >= end):
                return tallies
            kind = min(left, key=lambda name: left[name].seconds)
            _run(kind, seed, first + tallies[kind].cases, folder, tallies[kind])
            bar.update()


def _run(kind: str, seed: int, number: int, folder: Path, tally: Tally) -> None:
    start, own = time.monotonic(), folder / f"{kind} {number}"
    own.mkdir()
    came_to, finding = run_case(
        lambda place: KINDS[kind](random.Random(f"{seed} {kind} {number}"), place), own
    )
    shutil.rmtree(own, ignore_errors=True)  # what is mapped into memory cannot be removed everywhere
    tally.cases += 1
    tally.seconds += time.monotonic() - start
    tally.came_to[came_to] += 1
    if finding:
        tally.findings.append((number, finding))


@contextmanager
def _in_a_folder() -> Iterator[Path]:
    """A folder for the cases; the working directory is another one, which they are to leave alone."""
    before, threads = os.getcwd(), torch.get_num_threads()
    torch.set_num_threads(1)  # for what is small
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder, elsewhere = Path(temporary).resolve() / "cases", Path(temporary) / "elsewhere"
        folder.mkdir()
        elsewhere.mkdir()
        os.chdir(elsewhere)
        try:
            yield folder
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)


def told(tallies: dict[str, Tally], seed: int) -> str:
    """The outcome in words."""
    lines = []
    for kind, tally in tallies.items():
        most = ", ".join(f"{count} {word}" for word, count in tally.came_to.most_common())
        lines.append(
            f"{kind}: {tally.cases} cases in {tally.seconds:.0f} s, {len(tally.findings)} findings ({most})"
        )
        for number, finding in tally.findings[:SHOWN]:
            lines.append(f"\n{kind}: --seed {seed} --only {kind} --case {number}\n{finding}\n")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where it found something, or ran nothing of a kind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--seed", type=int, default=0)
    add("--seconds", type=float, help="30 without --cases")
    add("--cases", type=int, metavar="N", help="so many of each kind")
    add("--only", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    add("--case", type=int, metavar="K", help="this one alone")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    one = options.case is not None
    seconds = options.seconds if one or options.cases or options.seconds else 30
    tallies = fuzz(options.only, options.seed, seconds, 1 if one else options.cases, options.case or 0)
    print(told(tallies, options.seed))
    return int(any(tally.findings or not tally.cases for tally in tallies.values()))


if __name__ == "__main__":
    raise SystemExit(main())

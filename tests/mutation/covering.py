"""Which tests a change meets."""

from __future__ import annotations

from collections import defaultdict
from itertools import accumulate
from pathlib import Path
from xml.etree import ElementTree

from mutants import PACKAGE, Mutant, function_around

WORTH = 90.0
"""Seconds of tests that a change meets at most: what they do not notice counts as survived, though others might have."""


class Covering:
    """Which tests run which lines, and in how many seconds; from pytest-cov's file and pytest's JUnit XML."""

    def __init__(self, folder: Path, coverage: Path, seconds: Path) -> None:
        from coverage import CoverageData

        self._package = folder / PACKAGE
        self._data = CoverageData(str(coverage))
        self._data.read()
        cases = ElementTree.parse(seconds).iter("testcase")
        self._seconds: dict[str, float] = defaultdict(float)
        for case in cases:
            self._seconds[f"{case.get('classname')}.{case.get('name')}"] += float(case.get("time", 0))

    def tests(self, mutant: Mutant) -> list[str]:
        """For pytest: those of files of the changed one's name first, then quick ones, up to ``WORTH`` seconds; of all there
        are for a line that runs only when its file is imported."""
        lines = self._data.contexts_by_lineno(str(self._package / mutant.file))
        around = {context for line in function_around(mutant) for context in lines.get(line, ())}
        contexts = around - {""} or set(self._data.measured_contexts()) - {""}
        names = {context.rpartition("|")[0] for context in contexts}

        def order(name: str) -> tuple[bool, float, str]:
            return Path(mutant.file).stem not in Path(name.partition("::")[0]).stem, self._time(name), name

        ordered = sorted(names, key=order)
        until = list(accumulate(map(self._time, ordered)))
        return [name for name, seconds in zip(ordered, until, strict=True) if seconds <= max(WORTH, until[0])]

    def _time(self, name: str) -> float:
        path, _, test = name.partition("::")
        return self._seconds[f"{path.removesuffix('.py').replace('/', '.')}.{test}"]

"""mutmut's changes of the core, each as the file before and after."""

from __future__ import annotations

import ast
import difflib
import random
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "openood_adascale"
CORE = ["equations.py", "metrics.py", "evidence/", "detectors/"]
"""What is changed."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file; ``name`` is the file and the change's number in it."""

    name: str
    file: str
    before: str
    after: str

    @property
    def diff(self) -> str:
        lines = difflib.unified_diff(self.before.splitlines(), self.after.splitlines(), lineterm="", n=0)
        return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


class Changed:
    """A file and all of mutmut's changes of it."""

    def __init__(self, file: str) -> None:
        from mutmut.mutation.file_mutation import create_mutations

        self.file, self.code = file, (ROOT / PACKAGE / file).read_text()
        self._module, self._mutations, *_ = create_mutations(file, self.code)

    def __len__(self) -> int:
        return len(self._mutations)

    def mutant(self, number: int) -> Mutant:
        one = self._mutations[number]
        after = self._module.deep_replace(one.original_node, one.mutated_node).code
        return Mutant(f"{self.file}:{number}", self.file, self.code, after)


def files() -> list[str]:
    found: list[str] = []
    for room in CORE:
        path = ROOT / PACKAGE / room
        found += sorted(f"{room}{one.name}" for one in path.glob("*.py")) if room.endswith("/") else [room]
    return found


def sample(count: int, seed: int) -> list[Mutant]:
    """``count`` changes of all there are, each as likely as another."""
    every = [(changed, number) for changed in map(Changed, files()) for number in range(len(changed))]
    print(f"{len(every)} mutants of {len(files())} files", flush=True)
    return [
        changed.mutant(number)
        for changed, number in random.Random(seed).sample(every, min(count, len(every)))
    ]


def function_around(mutant: Mutant) -> range:
    """The lines of the smallest function in which the change is, its own where it is in none."""
    matcher = difflib.SequenceMatcher(None, mutant.before.splitlines(), mutant.after.splitlines(), False)
    changed = next(start for tag, start, *_ in matcher.get_opcodes() if tag != "equal") + 1
    functions = [
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(ast.parse(mutant.before))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    return min((one for one in functions if changed in one), key=len, default=range(changed, changed + 1))

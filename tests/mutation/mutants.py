"""mutmut's changes of the core, each as the file before and after."""

from __future__ import annotations

import ast
import difflib
import random
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "openood_adascale"
CORE = ["equations.py", "metrics.py", "evidence/", "detectors/"]
"""What is changed."""
_STRING = re.compile(r'(\w*)"((?:[^"\\]|\\.)*)"')
_WORDS = re.compile(r"[^\W\d_][:;,]? [^\W\d_]|[^\W\d_][:;]? $|^[ ,;]+[^\W\d_]")


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
    """``count`` changes of all there are, each as likely as another, but for those that :func:`changes_nothing`."""
    every = [(changed, number) for changed in map(Changed, files()) for number in range(len(changed))]
    print(f"{len(every)} mutants of {len(files())} files", flush=True)
    random.Random(seed).shuffle(every)
    drawn = (changed.mutant(number) for changed, number in every)
    return list(islice((mutant for mutant in drawn if not changes_nothing(mutant)), count))


def found_again(name: str, diff: str) -> Mutant | None:
    """The same change in today's file, wherever its line has come to stand; None if it is gone."""
    file, _, number = name.rpartition(":")
    if file not in files():
        return None
    changed = Changed(file)
    for near in sorted(range(len(changed)), key=lambda other: abs(other - int(number))):
        mutant = changed.mutant(near)
        if _without_place(mutant.diff) == _without_place(diff):
            return mutant
    return None


def _without_place(diff: str) -> str:
    return diff.partition("\n")[2]


def changes_nothing(mutant: Mutant) -> bool:
    """Whether the change is one of words for people, strings with a space between letters, or of a ``TypeVar``."""
    lines = mutant.diff.splitlines()[1:]
    if any(" = TypeVar(" in line for line in lines):
        return True
    before, after = (
        "\n".join(_without_words(line[1:]) for line in lines if line.startswith(sign)) for sign in ("-", "+")
    )
    return before == after


def _without_words(line: str) -> str:
    return _STRING.sub(
        lambda found: "words" if "f" not in found[1] and _WORDS.search(found[2]) else found[0], line
    )


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

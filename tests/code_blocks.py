"""The code blocks of a page in Markdown, and what the line before each says of it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")),
)
NOT_RUN = re.compile(r"<!-- not run: (\S.*\S) -->")
RUN_WITH = re.compile(r'<!-- run with ("[^"]*" for "[^"]+"(?:, "[^"]*" for "[^"]+")*) -->')


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str
    line: int
    """Of its first line, counted from 1."""
    language: str
    text: str
    not_run: str = ""
    """Why it is not run; empty if it is."""
    instead: tuple[tuple[str, str], ...] = ()
    """Pairs: what stands there, and the smaller thing that it is run with."""

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def code(self) -> str:
        """As it is to be run."""
        found = self.text
        for there, run_with in self.instead:
            assert there in found, f"{self.name}: {there!r} is not in it"
            found = found.replace(there, run_with)
        return found

    def commands(self) -> list[tuple[dict[str, str], list[str]]]:
        """Of a shell block, each command's variables and words."""
        found = []
        for line in self.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            variables = {}
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                name, _, variables[name] = words.pop(0).partition("=")
            if words:
                found.append((variables, words))
        return found


def blocks_of(page: str, text: str) -> list[Block]:
    """A page's code blocks in their order; Sphinx's directives, whose language stands in braces, are none."""
    found, opened, before = [], None, ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r" *```(.*)$", line)
        if opened is None:
            if fence:
                opened = (number + 1, fence[1].strip(), before, [])
            before = line.strip()
        elif fence:
            start, language, marker, lines = opened
            opened, before = None, ""
            if not language.startswith("{"):
                found.append(_block(page, start, language, "\n".join(lines) + "\n", marker))
        else:
            opened[-1].append(line)
    assert opened is None, f"{page}: a code block does not end"
    return found


def _block(page: str, line: int, language: str, text: str, marker: str) -> Block:
    not_run, run_with = NOT_RUN.fullmatch(marker), RUN_WITH.fullmatch(marker)
    pairs = re.findall(r'"([^"]*)" for "([^"]+)"', run_with[1]) if run_with else []
    instead = tuple((there, smaller) for smaller, there in pairs)
    return Block(page, line, language, text, not_run[1] if not_run else "", instead)


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page, (ROOT / page).read_text(encoding="utf-8"))]

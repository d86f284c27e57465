"""A report as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from .sheets import Sheet


def escaped(text: str) -> str:
    """Text that Markdown, GitHub's too, shows as it stands, within a line."""
    text = re.sub(r"[\\`*_\[\]|~$#]", r"\\\g<0>", text)
    # At the start of a list's item or cell these would begin a list or heading.
    text = re.sub(r"^(\d*)([-+=.)])(?=\s|$)", r"\1\\\2", text)
    return html.escape(text, quote=False)


def table(sheet: Sheet) -> str:
    """A table with its title."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def cell(text: str, best: bool, published: bool) -> str:
        mark = "**" if best else "*" if published else ""
        return f"{mark}{escaped(text)}{mark}"

    rows = [
        line(cell(text, best, place in sheet.published) for text, best in row)
        for place, row in enumerate(sheet.rows)
    ]
    rule = "|:--|" + "--:|" * (len(sheet.columns) - 1)
    head = line(map(escaped, sheet.columns))
    return "\n".join([f"**{escaped(sheet.title)}**", "", head, rule, *rows])


def points(texts: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {escaped(text)}" for text in texts)


def document(blocks: Iterable[str]) -> str:
    """The file."""
    return "\n\n".join(blocks) + "\n"

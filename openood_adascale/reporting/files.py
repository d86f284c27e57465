"""Files that are there to be read, and folders that are written to."""

from __future__ import annotations

import re
import sys
import unicodedata
from pathlib import Path

from ..errors import ResultError
from ..files import replacing

_LONGEST_SLUG = 150  # bytes; a file's name has 255 at most places


def is_regular(path: Path) -> bool:
    """Whether there is a file to read: no folder, no broken link or loop of links, no pipe that blocks."""
    try:
        return path.is_file()
    except OSError:
        return False


def not_regular(path: Path) -> str:
    """The note on what is no file."""
    return f"{path}: not a regular file"


class OutputFolder:
    """Where files are written: in place at once, under names that no other has, and nowhere else."""

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path, self._root = path, root or path
        self._names: set[str] = set()

    def inside(self, name: str) -> OutputFolder:
        """A folder in this one."""
        return OutputFolder(self.path / name, self._root)

    def unique(self, start: str, name: str, end: str) -> str:
        """A file's name for a method or search; none differ by case or spelling alone, as file systems do."""
        slug, number = slug_of(name), 1
        while (found := f"{start}{slug}{'' if number == 1 else f'_{number}'}{end}") and (
            key := unicodedata.normalize("NFKC", found).casefold()
        ) in self._names:
            number += 1
        self._names.add(key)
        return found

    def put(self, name: str, content: bytes | str) -> Path:
        """Write beside and rename, so that a link that waits there is replaced and not followed."""
        if not self.path.resolve().is_relative_to(self._root.resolve()):
            raise ResultError(
                f"{self.path}: leads to {self.path.resolve()}; expected a folder inside {self._root}"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
        with replacing(self.path / name) as beside, beside.open("xb") as file:
            file.write(data)
        return self.path / name


def slug_of(name: str) -> str:
    """A name as part of a file's: letters and digits that file names can have here, not too many of them."""
    encoding = sys.getfilesystemencoding()
    name = name.encode(encoding, "replace").decode(encoding).replace("\ufffd", "?")
    slug = re.sub(r"(?:[^\w.-]|_)+", "_", name).strip("_") or "unnamed"
    while len(slug.encode()) > _LONGEST_SLUG:
        slug = slug[:-1]
    return slug

"""Atomic writing of files, and text that is safe to print."""

from __future__ import annotations

import os
import secrets
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside ``path`` and rename it to ``path`` on success.

    The temporary file is removed if the block fails.

    Raises:
        OSError: The file cannot be written; the error names ``path``.
    """
    beside = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        # An error while writing, for example a full disk, names no file.
        if error.errno is None or error.filename not in (None, str(beside)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def printable(text: str) -> str:
    """Escape control characters and invalid UTF-8."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        else char
        for char in text
    )

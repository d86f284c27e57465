"""Files that are there only when they are whole."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file beside ``path``, in a folder that is there. At the end it takes the place of what ``path`` is, a
    link, too; of one that was not written to its end nothing is left.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    beside = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        # What fails while a file is being written names none, as on a full disk.
        if error.errno is None or error.filename not in (None, str(beside)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        beside.unlink(missing_ok=True)

"""Standard output and standard error of commands."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..io import printable

_LONGEST = 1000


class ClosedEarlyError(Exception):
    """Standard output was closed by its reader."""


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Escape letters that standard output cannot encode, and accept that ``| head`` closes it.

    Raises:
        ClosedEarlyError: Standard output was closed.
    """
    stdout = sys.stdout
    errors = stdout.errors if isinstance(stdout, io.TextIOWrapper) else None
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            if stdout is not None:
                stdout.flush()
    except BrokenPipeError:
        # The rest of the buffer has to go somewhere when Python flushes at its end ("Note on SIGPIPE").
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
        raise ClosedEarlyError from None
    finally:
        if isinstance(stdout, io.TextIOWrapper):
            stdout.reconfigure(errors=errors)


def complain(message: str) -> None:
    """Print a line to standard error, without control characters."""
    if sys.stderr is not None:
        print(printable(message), file=sys.stderr)


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line; of a process that reads images, its last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("Original Traceback" in line for line in lines):
        lines = lines[-1:]
    text = " ".join(lines) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

"""Standard output that may lack letters, or readers; and what is said beside it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..reporting.text import shown


class ClosedEarly(Exception):
    """Nobody reads standard output any more."""


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Letters that standard output's encoding lacks are escaped; that ``| head`` has seen enough is no error."""
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
        # What is still in the buffer has to go somewhere when Python flushes at its end ("Note on SIGPIPE").
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
        raise ClosedEarly from None
    finally:
        if isinstance(stdout, io.TextIOWrapper):
            stdout.reconfigure(errors=errors)


def complain(message: str) -> None:
    """To standard error, with nothing in it that a terminal would obey."""
    print(shown(message), file=sys.stderr)

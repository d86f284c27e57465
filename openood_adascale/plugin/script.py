"""Running somebody's script in this process."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def run_script(script: Path, arguments: Sequence[str]) -> None:
    """Run ``script`` as ``python SCRIPT ARGUMENTS…`` would; what a script finds in ``sys`` is put back afterwards."""
    before = sys.argv, list(sys.path)
    try:
        sys.argv = [str(script), *arguments]
        if not getattr(sys.flags, "safe_path", False):
            sys.path[0] = str(script.resolve().parent)
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before

"""``openood-adascale run``: an OpenOOD script with this package registered."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from ..plugin.registration import register
from .output import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.description = "For torch before 2.5, or where TORCH_DEVICE_BACKEND_AUTOLOAD=0 is set."
    parser.add_argument("script", help="for example scripts/eval_ood.py or main.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own")


def execute(options: argparse.Namespace) -> int:
    """Run the script as ``python SCRIPT ARGS…`` would; 2 where it is not there."""
    script = Path(options.script)
    if not script.is_file():
        complain(f"openood-adascale run: {options.script!r} is not a file; expected a Python script")
        return 2
    register()
    sys.argv = [str(script), *options.arguments]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")
    return 0

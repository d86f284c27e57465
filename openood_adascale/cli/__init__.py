"""The command line: ``openood-adascale demo | evaluate | fit | score | run | configs | presets | compare | report | store |
doctor``.

A file per command, with ``add_arguments(parser)`` and ``execute(options)``, which returns the exit status. Only the
one that is called is imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from .. import __version__
from ..errors import ProcessLost
from .output import ClosedEarly, complain, forgiving_output

COMMANDS = {
    "demo": "train a small network on images that pip installed, search, evaluate every method and draw",
    "evaluate": "evaluate any torchvision, timm or own network on any folders of images",
    "fit": "fit a detector for any network on folders of images, and write it to a file",
    "score": "score images with a fitted detector: which are out of distribution",
    "run": "run an OpenOOD script with this package registered, where torch does not autoload it",
    "configs": "print where the packaged yml files lie, for main.py --config",
    "presets": "list the paper's settings that are ready to run, for example by --postprocessor NAME",
    "compare": "compare OpenOOD's result files with the published figures",
    "store": "show or remove what a store of activations holds",
    "doctor": "say what is installed and found here, for a bug report",
    "report": "draw a run's folder: one HTML page, pictures, Markdown tables, leaderboard entries",
}

PASSES = ("evaluate", "fit", "score", "run")
"""Commands that run a network over images."""

_NOBODY_READS = 141  # 128 + SIGPIPE, as a shell says it; 1 and 2 have meanings of their own


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        with forgiving_output():
            options = _parse(sys.argv[1:] if arguments is None else arguments)
            if options.command != "run":
                return _execute(options)
    except ClosedEarly:
        return _NOBODY_READS
    return _execute(options)  # a script's output is its own affair


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="openood-adascale", description="The command line.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    called = next((word for word in arguments if word != "--"), None)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name == called:
            module = importlib.import_module(f".{name}", __package__)
            module.add_arguments(command)
            command.set_defaults(execute=module.execute)
    return parser.parse_args(arguments)


def _execute(options: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return _execute_in_group(options)
    status: int = options.execute(options)
    return status


def _execute_in_group(options: argparse.Namespace) -> int:
    """Under torchrun: process 0 runs the command, and its passes over images on all processes."""
    if options.command not in PASSES:
        return int(options.execute(options)) if os.environ.get("RANK") == "0" else 0
    from ..distributed.servant import LOST, Servant  # imports torch
    from ..distributed.start import launched_team
    from ..plugin.process import keep_memory
    from ..plugin.registration import register

    device = getattr(options, "device", None) or os.environ.get("OPENOOD_DEVICE") or None
    try:
        with launched_team(device) as team:
            if not isinstance(team, Servant):
                with nullcontext() if team is None else team.directing():
                    return int(options.execute(options))
            register()
            if device in (None, "cpu"):
                keep_memory()
            team.serve()
    except ProcessLost as error:
        complain(
            f"openood-adascale {options.command}: {error}; what is stored is kept, and a rerun goes on from there"
        )
        return LOST
    return 0

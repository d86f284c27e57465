"""The command line ``openood-adascale``.

A file per command, with ``add_arguments(parser)`` and ``execute(options)``, which returns the exit status. Only the command
that is called is imported.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from ..errors import CacheError, SettingError
from ..parallel import PoolError
from .options import UsageError, chosen_pool, describe
from .output import ClosedEarlyError, complain, forgiving_output, one_line

COMMANDS = {
    "demo": "train a small network, evaluate every method and write a report",
    "evaluate": "evaluate methods for any network on folders of images",
    "fit": "fit a detector for any network on folders of images",
    "score": "score images with a fitted detector",
    "run": "run an OpenOOD script with this package's methods",
    "configs": "print the paths of the packaged YAML files",
    "presets": "list the paper's hyperparameters",
    "compare": "compare result CSVs with published results",
    "report": "write a report of the folder of a run",
    "cache": "list or clear a feature cache",
    "doctor": "print versions, devices and settings for a bug report",
}
_CLOSED = 141  # 128 + SIGPIPE, as a shell has it
_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        complain(f"{self.prog}: {message} (see {self.prog} --help)")
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        with forgiving_output():
            options = _parse(sys.argv[1:] if arguments is None else arguments)
            if options.command != "run":
                return _execute(options)
    except ClosedEarlyError:
        return _CLOSED
    try:
        status: int = options.execute(options)  # a script's output and errors are its own
        return status
    except (SettingError, CacheError, PoolError, UsageError) as error:
        complain(_told(options, error))
        return 2


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="openood-adascale")
    describe(
        parser,
        "AdaSCALE out-of-distribution detection. Options of a command: openood-adascale COMMAND --help.",
        "openood-adascale demo",
        "openood-adascale evaluate --help",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    called = next((word for word in arguments if word != "--"), None)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name == called:
            module = importlib.import_module(f".{name}", __package__)
            module.add_arguments(command)
            command.set_defaults(execute=module.execute)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # named by the command, whose help has the options
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def _execute(options: argparse.Namespace) -> int:
    """Run a command; errors of the package become one line and status 2."""
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            with chosen_pool(options):
                status: int = options.execute(options)
            return status
        except BrokenPipeError:  # nobody reads standard output any more
            raise
        except (ValueError, TypeError, OSError, RuntimeError, ImportError, MemoryError) as error:
            complain(_told(options, error))
        except KeyboardInterrupt:
            complain(f"openood-adascale {options.command}: interrupted")
            return _INTERRUPTED
        return 2


def _told(options: argparse.Namespace, error: Exception) -> str:
    """Return an error in one line, that of a missing option with a hint to the help."""
    if isinstance(error, SettingError) and error.value is None:
        name = error.name.removeprefix("benchmark.").removeprefix("--").replace("_", "-")
        if name.replace("-", "_") in options:
            error = UsageError(f"missing required option: --{name}; expected {error.allowed}")
    command = f"openood-adascale {options.command}"
    hint = f" (see {command} --help)" if isinstance(error, UsageError) else ""
    return f"{command}: {one_line(error)}{hint}"


def _warn(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning | RuntimeWarning):
        complain(f"warning: {message}")

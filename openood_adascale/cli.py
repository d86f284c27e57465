"""The command line: ``openood-adascale demo | run | configs | presets | compare | report``."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__, plugin

_REPORTING = {
    "compare": "compare OpenOOD's result files with the published figures",
    "report": "draw a run's folder: one HTML page, pictures, Markdown tables, leaderboard entries",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="openood-adascale", description=__doc__.split(":")[0] + ".")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_demo(commands)
    _add_run(commands)
    commands.add_parser(
        "configs", help="print where the packaged yml files lie, for main.py --config"
    ).set_defaults(call=_configs)
    commands.add_parser(
        "presets", help="list the paper's settings that are ready to run, for example by --postprocessor NAME"
    ).set_defaults(call=_presets)
    given = sys.argv[1:] if arguments is None else list(arguments)
    for name, text in _REPORTING.items():
        command = commands.add_parser(name, help=text)
        if given[:1] == [name]:  # what these import would slow down the others
            module = importlib.import_module(f".{name}", __package__)
            module.add_arguments(command)
            command.set_defaults(call=module.run)
    options = parser.parse_args(arguments)
    return options.call(options)


def _add_demo(commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="train a small network on images that pip installed, search, evaluate eight methods and draw",
    )
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("adascale-demo"), help="folder (default: %(default)s)"
    )
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(call=_demo)


def _demo(options: argparse.Namespace) -> int:
    from .demo import run

    run(options.output, options.seed, progress=False if options.quiet else None)
    return 0


def _add_run(commands) -> None:
    run = commands.add_parser(
        "run",
        help="run an OpenOOD script with this package registered, where torch does not autoload it",
        description="For torch before 2.5, or where TORCH_DEVICE_BACKEND_AUTOLOAD=0 is set.",
    )
    run.add_argument("script", help="for example scripts/eval_ood.py or main.py")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own")
    run.set_defaults(call=_run)


def _run(options: argparse.Namespace) -> int:
    script = Path(options.script)
    if not script.is_file():
        print(
            f"openood-adascale run: {options.script!r} is not a file; expected a Python script",
            file=sys.stderr,
        )
        return 2
    plugin.register()
    # As `python SCRIPT ARGS…` would have it.
    sys.argv = [str(script), *options.arguments]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")
    return 0


def _configs(options: argparse.Namespace) -> int:
    folder = plugin.configs_root() / "postprocessors"
    print(folder)
    for path in sorted(folder.glob("*.yml")):
        print(path)
    return 0


def _presets(options: argparse.Namespace) -> int:
    from .presets import presets

    table = presets()
    table.insert(
        4, "percentiles", [f"{low:g}-{high:g}" for low, high in table[["p_min", "p_max"]].to_numpy()]
    )
    table = table.rename(columns={"k1_percent": "k1", "k2_percent": "k2"})
    shown = ["name", "variant", "dataset", "network", "percentiles", "k1", "k2", "o", "source"]
    print(table[shown].to_string(index=False))
    return 0

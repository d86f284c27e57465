"""``openood-adascale configs``: paths of the packaged YAML files."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options, of which there are none."""
    describe(
        parser,
        "Print the folder of the packaged YAML files, for OpenOOD's main.py --config, and each file.",
        "openood-adascale configs | head -1",
    )


def execute(options: argparse.Namespace) -> int:
    """Print the folder and its files."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"  # in a checkout it lies beside the package
    folder = (installed if installed.is_dir() else package.parent / "configs") / "postprocessors"
    print(folder, *sorted(folder.glob("*.yml")), sep="\n")
    return 0

"""``openood-adascale configs``: paths of the packaged YAML files."""

from __future__ import annotations

import argparse

from ..plugin.import_hook import configs_root
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
    folder = configs_root() / "postprocessors"
    print(folder, *sorted(folder.glob("*.yml")), sep="\n")
    return 0

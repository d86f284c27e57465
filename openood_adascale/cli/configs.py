"""``openood-adascale configs``: where the packaged yml files lie."""

from __future__ import annotations

import argparse

from ..plugin.names import configs_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def execute(options: argparse.Namespace) -> int:
    """Print the folder and its files."""
    folder = configs_root() / "postprocessors"
    print(folder)
    for path in sorted(folder.glob("*.yml")):
        print(path)
    return 0

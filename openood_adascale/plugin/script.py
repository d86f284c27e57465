"""Running somebody's script in this process."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .process import switched_off
from .registration import OWN_NAMES
from .script_data import asked_for, with_own_data


def run_script(script: Path, arguments: Sequence[str]) -> None:
    """:func:`ready_to_run`, and run it."""
    ready_to_run(script, arguments)()


def ready_to_run(script: Path, arguments: Sequence[str]) -> Callable[[], None]:
    """What runs ``script`` as ``python SCRIPT ARGUMENTS…`` would; what a script finds in ``sys`` is put back afterwards.

    Where the arguments choose a data set of one's own, it is put beside those that the script lists.

    Raises:
        SettingError: the script has no such list, or the data set names no network.
    """
    name = asked_for(arguments)
    if name is not None and not switched_off("register"):
        OWN_NAMES.read_variable()
    if name is not None and name in OWN_NAMES:
        run = with_own_data(script, OWN_NAMES.get(name))
    else:

        def run() -> None:
            runpy.run_path(str(script), run_name="__main__")

    def run_it() -> None:
        before = sys.argv, list(sys.path)
        try:
            sys.argv = [str(script), *arguments]
            if not getattr(sys.flags, "safe_path", False):
                sys.path[0] = str(script.resolve().parent)
            run()
        finally:
            sys.argv, sys.path[:] = before

    return run_it

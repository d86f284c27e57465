"""``openood-adascale run``: an OpenOOD script with this package registered, for one or many postprocessors."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import SettingError, StoreError
from ..plugin.registration import register
from .output import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.description = (
        "For torch before 2.5, where TORCH_DEVICE_BACKEND_AUTOLOAD=0 is set, for eval_ood.py with a data set of one's own "
        "(OPENOOD_ADASCALE_DATASETS=FILE.yml, --id-data NAME), and for many postprocessors at once: the network then runs "
        "over an image once for all of them that need nothing of it but its activation."
    )
    parser.add_argument(
        "--postprocessors",
        metavar="NAMES",
        help="run the script once for each of these, in one process, and print a table of all: names of OpenOOD's and "
        "this package's, separated by commas, or all",
    )
    parser.add_argument(
        "--store",
        metavar="DIR",
        help="keep the images' activations in this folder; OPENOOD_ADASCALE_STORE without this",
    )
    parser.add_argument("script", help="for example scripts/eval_ood.py or main.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own")


def execute(options: argparse.Namespace) -> int:
    """Run the script as ``python SCRIPT ARGS…`` would; 2 where it is not there, 1 where a postprocessor failed."""
    script = Path(options.script)
    if not script.is_file():
        complain(f"openood-adascale run: {options.script!r} is not a file; expected a Python script")
        return 2
    register()
    if options.store is None and options.postprocessors is None:
        from ..plugin.script import ready_to_run

        try:
            run = ready_to_run(script, options.arguments)
        except SettingError as error:
            complain(f"openood-adascale run: {error}")
            return 2
        run()
        return 0
    return _with_store(options, script)


def _with_store(options: argparse.Namespace, script: Path) -> int:
    # Late, since they import torch.
    from ..evidence.sharing import is_chosen, using_store
    from ..plugin import comparison
    from ..plugin import script as scripts

    try:
        with using_store(options.store or (None if is_chosen() else True)):
            if options.postprocessors is None:
                scripts.run_script(script, options.arguments)
                return 0
            names = comparison.chosen(options.postprocessors)
            outcomes = comparison.compare(script, options.arguments, names)
    except (SettingError, StoreError) as error:
        complain(f"openood-adascale run: {error}")
        return 2
    print(comparison.summary(outcomes))
    return int(any(outcome.error or not outcome.metrics for outcome in outcomes))

"""``openood-adascale evaluate``: evaluate methods for any network on folders of images."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..io import replacing
from .options import (
    add_classes,
    add_network,
    add_precision,
    add_ray,
    add_reading,
    add_report_options,
    describe,
    names_and_places,
    report_options,
    require,
)

_NOT_IN_CONFIG = ("command", "execute", "config", "ray", "ray_workers", "ray_dashboard")
_NUMBER, _SWITCH = (int, "a whole number"), (bool, "true or false")
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("near", "far"), ((dict, list), "a section of NAME: DIR, or a list of NAME=DIR")),
    **dict.fromkeys(("methods", "compare_methods"), ((str, list), "a text, or a list of them")),
    **dict.fromkeys(("max_images", "batch_size", "workers", "forward_batch_size"), _NUMBER),
    **dict.fromkeys(("search", "skip_broken", "quiet"), _SWITCH),
}
"""Types of the options in a YAML file that are not texts, and their descriptions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    describe(
        parser,
        "Evaluate methods on ID test images and sets of OOD images, in one forward pass for all, and "
        "write tables, scores and a report. Options can stand in a YAML file (--config); the command "
        "line has precedence. Exit status: 0, 1 if a method was left out, 2 for an error.",
        "openood-adascale evaluate --network torchvision:resnet50 --weights default \\\n"
        "      --id images/test --val images/val --ood-val images/ood-val \\\n"
        "      --near wolves=images/wolves --far textures=images/textures \\\n"
        "      --labels folders -o results",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of options by name (default: none)")
    add = parser.add_argument_group("images", "folders, image lists (.txt) or CSVs").add_argument
    add("--id", metavar="DIR", help="ID test images (required)")
    add("--near", metavar="NAME=DIR", nargs="+", action="extend", help="near-OOD sets (required, or --far)")
    add("--far", metavar="NAME=DIR", nargs="+", action="extend", help="far-OOD sets (required, or --near)")
    add("--val", metavar="DIR", help="ID validation images, to fit and search (default: none)")
    add("--ood-val", metavar="DIR", help="OOD validation images, to search (default: no search)")
    add(
        "--train",
        metavar="DIR",
        help="ID training images, for methods that are fitted on them (default: --val)",
    )
    add_classes(parser, "--id")
    add_network(parser)
    add = parser.add_argument_group("methods").add_argument
    add(
        "--methods",
        metavar="NAMES",
        help="names separated by commas; openood:NAME is a postprocessor of OpenOOD ($OPENOOD_ROOT, or import openood), "
        "openood:all those that need features alone (default: all of this package)",
    )
    add(
        "--search",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="search the hyperparameters on --val and --ood-val (default: if --ood-val is given)",
    )
    add = parser.add_argument_group("output").add_argument
    add("-o", "--output", metavar="DIR", help="folder for tables, scores and the report (required)")
    add_report_options(parser)
    add_precision(parser)
    add_reading(
        parser, "leave out images that cannot be read; reads each once more (default: they are errors)"
    )
    add_ray(parser)


def execute(options: argparse.Namespace) -> int:
    """Evaluate, and print a table; 1 if a method was left out."""
    chosen = chosen_options(options)
    _check_report(chosen)
    _check_output(Path(chosen["output"]))
    # Late, since they import torch.
    from ..evaluation.own_images import evaluate_folders
    from ..plugin.import_hook import keep_memory

    keep_memory()
    found = evaluate_folders(chosen, print, _other_methods(chosen))
    _write(chosen, found.results)
    return int(bool(found.left_out))


def _other_methods(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return other libraries' methods by their kind."""
    if "openood:" not in str(chosen["methods"]):
        return {}
    from ..plugin.openood_methods import KIND, OpenOODMethods

    return {KIND: OpenOODMethods(False if chosen["quiet"] else None)}


def chosen_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return all options by name, those of ``--config`` below those of the command line.

    Raises:
        SettingError: An unknown option, a value of another type, or a YAML file that cannot be read.
        UsageError: Required options are missing.
    """
    known = {name: value for name, value in vars(options).items() if name not in _NOT_IN_CONFIG}
    chosen: dict[str, Any] = dict.fromkeys(known)
    if options.config is not None:
        chosen.update(_read_config(options.config, set(known)))
    chosen.update({name: value for name, value in known.items() if value is not None})
    require(chosen, "network", "id", "near|far", "output")
    for name in ("near", "far"):
        chosen[name] = names_and_places(name, chosen[name])
    if both := sorted({*chosen["near"]} & {*chosen["far"]}):
        raise SettingError("--far", both[0], "a name that no near set has")
    return chosen


def _read_config(path: str, known: set[str]) -> dict[str, Any]:
    import yaml

    from ..data.listing import read_text
    from ..detectors.settings import read_yaml

    try:
        text = read_text("--config", path)
        text.encode()
        found = read_yaml(text)
    except (yaml.YAMLError, UnicodeError) as error:
        raise SettingError(
            "--config", path, f"a YAML file that can be read ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(found, dict):
        raise SettingError("--config", path, "a YAML file of options by name")
    chosen = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise SettingError(f"{path}: {key}", value, f"an option: {', '.join(sorted(known))}")
        kinds, told = _KINDS.get(name, (str, "a text (in quotes, if a number)"))
        plain = isinstance(value, kinds) and (kinds is not int or not isinstance(value, bool))
        if value is not None and not plain:
            raise SettingError(f"{path}: {key}", value, told)
        chosen[name] = value
    return chosen


def _check_report(chosen: dict[str, Any]) -> None:
    """Check the options of the report before the forward passes."""
    wanted = report_options(chosen)
    from ..evaluation.own_images import methods_named  # imports torch
    from ..report.render import check_options

    check_options(
        [name.replace(":", "_", 1) for name in methods_named(chosen["methods"], _other_methods(chosen))],
        **wanted,
    )


def _check_output(folder: Path) -> None:
    """Make the output folder, and check that files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingError(
            "--output", str(folder), f"a folder that can be written to ({error.strerror})"
        ) from error


def _write(chosen: dict[str, Any], results: dict[str, Any]) -> None:
    import yaml

    from .. import __version__
    from ..report.render import write_report
    from ..report.run import Run, write_run

    output = Path(chosen["output"])
    was_run = {name: value for name, value in chosen.items() if value is not None}
    settings = {name: value for name, value in was_run.items() if name not in ("near", "far")}
    run = Run.from_results(results, title=str(chosen["network"]), network=str(chosen["network"]))
    run.settings = settings
    write_run(run, output)
    page = write_report(run, output / "report", **report_options(chosen))
    text = yaml.safe_dump(was_run, sort_keys=False, allow_unicode=True)
    again = "run again by: openood-adascale evaluate --config evaluate.yml"
    with replacing(output / "evaluate.yml") as beside:
        beside.write_text(f"# openood-adascale {__version__}; {again}\n{text}", encoding="utf-8")
    print(f"tables: {output / 'ood'}, report: {page}")

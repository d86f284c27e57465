"""``openood-adascale evaluate``: evaluate methods for any network on folders of images."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..io import replacing
from .options import (
    METHODS,
    add_labels,
    add_network,
    add_passes,
    add_report_options,
    describe,
    group,
    report_options,
    require,
)

_NOT_IN_CONFIG = ("command", "execute", "parser", "config", "ray", "ray_workers", "ray_dashboard")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    describe(
        parser,
        "Evaluate methods on ID test images and sets of OOD images, in one forward pass for all, and write tables, "
        "scores and a report. Options can stand in a YAML file (--config); the command line has precedence. Exit "
        "status: 0, 1 if a method was left out, 2 for an error.",
        "openood-adascale evaluate --network torchvision:resnet50 --weights default \\\n"
        "      --id images/test --val images/val --ood-val images/ood-val \\\n"
        "      --near wolves=images/wolves --far textures=images/textures \\\n"
        "      --labels folders -o results",
        usage="--network SPEC --id DIR --near NAME=DIR ...\n"
        "                                 --far NAME=DIR ... -o DIR [OPTIONS]",
    )
    parser.set_defaults(parser=parser)
    group(parser)("--config FILE", "YAML file of options by name (default: none)")
    add_network(parser)
    add = group(parser, "images", "folders, image lists (.txt) or CSVs")
    several = {"nargs": "+", "action": "extend"}
    add("--id DIR", "ID test images (required)")
    add("--near NAME=DIR", "near-OOD sets (required, or --far)", **several)
    add("--far NAME=DIR", "far-OOD sets (required, or --near)", **several)
    add(
        "--val DIR",
        "ID validation images, to fit and search (required for adascale and adascale_logit, and for bfact and optfs "
        "without --train)",
    )
    add("--ood-val DIR", "OOD validation images, to search (default: no search)")
    add("--train DIR", "ID training images, for methods that are fitted on them (default: --val)")
    add_labels(parser, "--id")
    add = group(parser, "methods")
    add(
        "--methods NAMES",
        f"names separated by commas: {METHODS}; or openood:NAME, a postprocessor of OpenOOD (in $OPENOOD_ROOT or on "
        "Python's path), openood:all for those that need features only (default: all of this package)",
    )
    add(
        "--search",
        "search the hyperparameters on --val and --ood-val (default: if --ood-val is given)",
        action=argparse.BooleanOptionalAction,
    )
    group(parser, "output")("-o --output DIR", "folder for tables, scores and the report (required)")
    add_report_options(parser)
    add_passes(parser, "leave out images that cannot be read; reads each once more (default: an error)")


def execute(options: argparse.Namespace) -> int:
    """Evaluate, and print a table; 1 if a method was left out."""
    chosen = chosen_options(options)
    wanted = report_options(chosen)
    output = Path(chosen["output"])
    # Late, since they import torch.
    from ..evaluation.own_images import evaluate_folders, methods_named
    from ..plugin.import_hook import keep_memory
    from ..report.render import check_options

    others: dict[str, Any] = {}
    if "openood:" in str(chosen["methods"]):
        from ..plugin.openood_methods import KIND, OpenOODMethods

        others[KIND] = OpenOODMethods(False if chosen["quiet"] else None)
    # Before any forward pass.
    check_options([name.replace(":", "_", 1) for name in methods_named(chosen["methods"], others)], **wanted)
    _check_output(output)
    keep_memory()
    results, left_out = evaluate_folders(chosen, print, others)
    _write(output, chosen, results, wanted)
    return int(bool(left_out))


def chosen_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return all options by name, those of ``--config`` below those of the command line.

    Raises:
        SettingError: An unknown option, a set without a name, or a YAML file that cannot be read.
        UsageError: Required options are missing.
    """
    chosen = {name: value for name, value in vars(options).items() if name not in _NOT_IN_CONFIG}
    if options.config is not None:
        words = _read_config(options.config, list(chosen))
        noted = vars(options.parser.parse_args(words))
        chosen = {name: noted[name] if value is None else value for name, value in chosen.items()}
    require(chosen, "network", "id", "near|far", "output")
    for name in ("near", "far"):
        chosen[name] = _sets(name, chosen[name] or ())
    if both := sorted({*chosen["near"]} & {*chosen["far"]}):
        raise SettingError("--far", both[0], "a name that no near set has")
    return chosen


def _sets(option: str, words: Sequence[str]) -> dict[str, str]:
    sets: dict[str, str] = {}
    for word in words:
        name, _, place = word.partition("=")
        if not (name and place) or name in sets:
            raise SettingError(f"--{option}", word, "NAME=DIR, each name once")
        sets[name] = place
    return sets


def _read_config(path: str, known: Sequence[str]) -> list[str]:
    """Return the options of a YAML file as words of a command line."""
    import yaml

    from ..data.listing import read_text
    from ..detectors.settings import read_yaml

    try:
        text = read_text("--config", path)
        text.encode()
        found = read_yaml(text)
    except (yaml.YAMLError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise SettingError("--config", path, f"a YAML file that can be read ({reason})") from error
    if not isinstance(found, dict):
        raise SettingError("--config", path, "a YAML file of options by name")
    words = []
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise SettingError(f"{path}: {key}", value, f"an option: {', '.join(sorted(known))}")
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [option] if value else ["--no-search"] if name == "search" else []
        elif name in ("near", "far"):
            sets = [f"{key}={place}" for key, place in value.items()] if isinstance(value, Mapping) else value
            if not isinstance(sets, list):
                raise SettingError(f"{path}: {key}", value, "a section of NAME: DIR, or a list of NAME=DIR")
            words += [option, *map(str, sets)]
        elif isinstance(value, list):
            words.append(f"{option}={','.join(map(str, value))}")
        elif value is not None:
            words.append(f"{option}={value}")
    return words


def _check_output(folder: Path) -> None:
    """Make the output folder, and check that files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        allowed = f"a folder that can be written to ({error.strerror})"
        raise SettingError("--output", str(folder), allowed) from error


def _write(output: Path, chosen: dict[str, Any], results: dict[str, Any], wanted: dict[str, Any]) -> None:
    import yaml

    from .. import __version__
    from ..report.render import write_report
    from ..report.run import Run, write_run

    given = {name: value for name, value in chosen.items() if value not in (None, {})}
    run = Run.from_results(results, title=str(chosen["network"]), network=str(chosen["network"]))
    run.settings = {name: value for name, value in given.items() if name not in ("near", "far")}
    write_run(run, output)
    page = write_report(run, output / "report", **wanted)
    again = "paths are relative to the working folder of the run; repeat it there with --config FILE"
    with replacing(output / "evaluate.yml") as beside:
        text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
        beside.write_text(f"# openood-adascale {__version__}; {again}\n{text}", encoding="utf-8")
    print(f"tables: {output / 'ood'}, report: {page}")

"""``openood-adascale evaluate``: OpenOOD's protocol for any network and any folders of images, all methods in one pass."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..files import replacing
from .options import add_network, add_pictures, add_precision, add_reading, pictures_chosen
from .output import complain

_NUMBER, _SWITCH = (int, "a whole number"), (bool, "true or false")
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("near", "far"), ((dict, list), "a section of NAME: DIR, or a list of NAME=DIR")),
    **dict.fromkeys(("methods", "pair"), ((str, list), "a text, or a list of them")),
    **dict.fromkeys(("images", "batch_size", "workers"), _NUMBER),
    **dict.fromkeys(("search", "skip_broken", "quiet"), _SWITCH),
}
"""What a yml can have of the options that are no texts, and how that is told."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.description = (
        "Every option can stand in a yml instead (--config): network: torchvision:resnet50, near: {NAME: DIR, …} and so "
        "on; what stands on the command line wins."
    )
    add = parser.add_argument
    add("--config", metavar="FILE.yml", help="options by their names")
    add_network(parser)
    add("--id", metavar="DIR", help="in-distribution test images")
    add("--val", metavar="DIR", help="in-distribution validation images")
    add("--ood-val", metavar="DIR", help="OOD validation images, for a search")
    add("--train", metavar="DIR", help="training images; methods that learn from them take --val without it")
    add(
        "--near",
        metavar="NAME=DIR",
        nargs="+",
        action="extend",
        help="near-OOD sets; one set, near or far, is needed",
    )
    add("--far", metavar="NAME=DIR", nargs="+", action="extend", help="far-OOD sets")
    add(
        "--labels",
        metavar="HOW",
        help="folders: each class of --id in a folder of its own; or a CSV: path, label",
    )
    add("--classes", metavar="FILE", help="names of the network's classes for the report, one a line")
    add(
        "--methods",
        metavar="NAMES",
        help="separated by commas; all (the default) are this package's, openood:NAME is one of OpenOOD's own "
        "postprocessors where OpenOOD is (OPENOOD_ROOT, or import openood), openood:all those that need only features",
    )
    add(
        "--search",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="search the settings on validation images",
    )
    add("--out", metavar="DIR", help="folder for tables and report")
    add_pictures(parser)
    add_precision(parser)
    add_reading(parser)


def execute(options: argparse.Namespace) -> int:
    """Run it and print a table of all; 2 where an option or an image cannot be used, 1 where a method was left out."""
    try:
        chosen = choices(options)
        _check_report(chosen)  # what is wrong is to be known before the passes
        _write_choices(chosen)
        # Late, since they import torch.
        from ..evaluation.own_images import evaluate_folders
        from ..plugin.process import keep_memory

        keep_memory()
        found = evaluate_folders(chosen, print, _foreign(chosen))
        _write(chosen, found.results)
    except (ValueError, TypeError, OSError, ImportError) as error:
        complain(f"openood-adascale evaluate: {error}")
        return 2
    return int(bool(found.left_out))


def _foreign(chosen: dict[str, Any]) -> dict[str, Any]:
    """Other libraries' methods."""
    from ..plugin.foreign import KIND, OpenOODs

    return {KIND: OpenOODs(False if chosen["quiet"] else None)}


def choices(options: argparse.Namespace) -> dict[str, Any]:
    """The options, those of ``--config`` beneath those of the command line.

    Raises:
        SettingError: one is unknown, missing or no ``NAME=DIR``, or the yml cannot be read.
    """
    import yaml

    from ..detectors.settings import read_yaml

    known = {
        name: value for name, value in vars(options).items() if name not in ("command", "execute", "config")
    }
    chosen: dict[str, Any] = dict.fromkeys(known)
    if options.config is not None:
        try:
            found = read_yaml(Path(options.config).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise SettingError("--config", options.config, f"a yml that can be read ({error})") from error
        if not isinstance(found, dict):
            raise SettingError("--config", options.config, "a yml of options by their names")
        for key, value in found.items():
            name = str(key).replace("-", "_")
            if name not in known:
                allowed = ", ".join(sorted(known))
                raise SettingError(f"{options.config}: {key}", value, f"no such option; known are {allowed}")
            kinds, told = _KINDS.get(name, (str, "a text (in quotes, if a number)"))
            if value is not None and not isinstance(value, kinds):
                raise SettingError(f"{options.config}: {key}", value, told)
            chosen[name] = value
    chosen.update({name: value for name, value in known.items() if value is not None})
    for name in ("near", "far"):
        chosen[name] = _sets(name, chosen[name])
    if not chosen["near"] and not chosen["far"]:
        raise SettingError("--near, --far", None, "at least one NAME=DIR in one of them")
    for name in ("network", "id", "out"):
        if not chosen[name]:
            raise SettingError(f"--{name}", chosen[name], "one: it is needed")
    return chosen


def _sets(name: str, given: Any) -> dict[str, str]:
    if isinstance(given, dict):
        return {str(key): str(folder) for key, folder in given.items()}
    sets: dict[str, str] = {}
    for word in given or ():
        key, equals, folder = str(word).partition("=")
        if not (key and equals and folder) or key in sets:
            raise SettingError(f"--{name}", word, "NAME=DIR, each name once")
        sets[key] = folder
    return sets


def _check_report(chosen: dict[str, Any]) -> None:
    from ..evaluation.own_images import methods_named
    from ..reporting.identify import Identity
    from ..reporting.names import label_of
    from ..reporting.rivals import whose

    wanted = pictures_chosen(chosen)
    there = methods_named(chosen["methods"], _foreign(chosen))
    for name in wanted.get("pair", ()):
        if name not in there and name.casefold() not in (label_of(one).casefold() for one in there):
            raise SettingError("--pair", name, f"two of the methods: {', '.join(there)}")
    whose(Identity(""), wanted.get("published"))


def _write_choices(chosen: dict[str, Any]) -> None:
    """What was asked for, for another time; that the folder can be written to is known from this."""
    import yaml

    from .. import __version__

    out = Path(chosen["out"])
    out.mkdir(parents=True, exist_ok=True)
    was_run = {name: value for name, value in chosen.items() if value is not None}
    text = yaml.safe_dump(was_run, sort_keys=False, allow_unicode=True)
    again = "again by: openood-adascale evaluate --config evaluate.yml"
    with replacing(out / "evaluate.yml") as beside:
        beside.write_text(f"# What openood-adascale {__version__} ran; {again}\n{text}", encoding="utf-8")


def _write(chosen: dict[str, Any], results: dict[str, Any]) -> None:
    from ..evaluation.tables import save_csv
    from ..reporting import image_table
    from ..reporting.gather import from_results
    from ..reporting.report import write

    out = Path(chosen["out"])
    for name, result in results.items():
        save_csv(result.table, out / "ood" / f"{name}.csv")
        if result.search is not None:
            (out / "search").mkdir(parents=True, exist_ok=True)
            with replacing(out / "search" / f"{name}.csv") as beside:
                result.search.to_csv(beside, index=False)
    image_table.write(results, out / image_table.NAME)
    run = from_results(results, title=str(chosen["network"]))
    page = write(run, out / "report", **pictures_chosen(chosen))
    print(f"Tables are in {out / 'ood'}, the report is {page}")

"""``openood-adascale fit``: a detector for any network, from folders of its images, as a file."""

from __future__ import annotations

import argparse

from .options import add_network, add_precision, add_reading
from .output import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.description = (
        "Fit a detector on in-distribution validation images; with --ood-val, search its settings."
    )
    add = parser.add_argument
    add_network(parser)
    add("--method", metavar="NAME", default="adascale", help="one of this package's (default: %(default)s)")
    add(
        "--set",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        help="settings, such as percentile=[80,85] k1=2",
    )
    add("--val", metavar="DIR", required=True, help="in-distribution validation images")
    add("--ood-val", metavar="DIR", help="OOD validation images, for a search")
    add("--train", metavar="DIR", help="training images; methods that learn from them take --val without it")
    add(
        "--labels",
        metavar="HOW",
        help="folders: each class of --val in a folder of its own, by which it is called",
    )
    add("-o", "--out", metavar="FILE", required=True, help="the detector, such as detector.safetensors")
    add_precision(parser)
    add_reading(parser)


def execute(options: argparse.Namespace) -> int:
    """Run it; 2 where an option, an image or a file cannot be used."""
    from ..evaluation.scoring import fit_folders  # imports torch
    from ..plugin.process import keep_memory

    keep_memory()
    try:
        fit_folders(vars(options), print)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        complain(f"openood-adascale fit: {error}")
        return 2
    return 0

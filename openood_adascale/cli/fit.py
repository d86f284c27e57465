"""``openood-adascale fit``: fit a detector for any network on folders of images."""

from __future__ import annotations

import argparse

from .options import add_classes, add_network, add_precision, add_ray, add_reading, describe, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    describe(
        parser,
        "Fit a detector on ID validation images and write it to a file. With --ood-val its "
        "hyperparameters are searched.",
        "openood-adascale fit --network file.py:network --val images/val \\\n"
        "      --ood-val images/ood-val -o detector.safetensors",
    )
    add = parser.add_argument_group("images").add_argument
    add("--val", metavar="DIR", help="ID validation images: folder, image list (.txt) or CSV (required)")
    add("--ood-val", metavar="DIR", help="OOD validation images for a search (default: no search)")
    add(
        "--train",
        metavar="DIR",
        help="ID training images, for methods that are fitted on them (default: --val)",
    )
    add_classes(parser, "--val")
    add_network(parser)
    add = parser.add_argument_group("method").add_argument
    add(
        "--method",
        metavar="NAME",
        default="adascale",
        help="method, as in evaluate --methods (default: %(default)s)",
    )
    add(
        "--set",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        help="settings, such as percentile=[80,85] k1=2 fit_split=val (default: the method's own)",
    )
    add(
        "-o", "--output", metavar="FILE", help="file of the detector, such as detector.safetensors (required)"
    )
    add_precision(parser)
    add_reading(
        parser, "leave out images that cannot be read; reads each once more (default: they are errors)"
    )
    add_ray(parser)


def execute(options: argparse.Namespace) -> int:
    """Fit and save the detector."""
    require(vars(options), "network", "val", "output")
    from ..evaluation.scoring import fit_folders  # imports torch
    from ..plugin.import_hook import keep_memory

    keep_memory()
    fit_folders(vars(options), print)
    return 0

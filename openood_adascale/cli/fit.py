"""``openood-adascale fit``: fit a detector for any network on folders of images."""

from __future__ import annotations

import argparse

from .options import METHODS, add_labels, add_network, add_passes, describe, group, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    describe(
        parser,
        "Fit a detector on ID validation images and write it to a file. With --ood-val its hyperparameters are "
        "searched.",
        "openood-adascale fit --network file.py:network --val images/val \\\n"
        "      --ood-val images/ood-val -o detector.safetensors",
        usage="--network SPEC --val DIR -o FILE [OPTIONS]",
    )
    add_network(parser)
    add = group(parser, "images", "folders, image lists (.txt) or CSVs")
    add("--val DIR", "ID validation images (required)")
    add("--ood-val DIR", "OOD validation images, to search (default: no search)")
    add("--train DIR", "ID training images, for methods that are fitted on them (default: --val)")
    add_labels(parser, "--val")
    add = group(parser, "method")
    add("--method NAME", f"{METHODS} (default: %(default)s)", default="adascale")
    add(
        "--set NAME=VALUE",
        "settings, such as percentile=[80,85] k1=2 fit_split=val (default: the method's own)",
        nargs="+",
        action="extend",
    )
    group(parser, "output")("-o --output FILE", "file of the detector, e.g. detector.safetensors (required)")
    add_passes(parser, "leave out images that cannot be read; reads each once more (default: an error)")


def execute(options: argparse.Namespace) -> int:
    """Fit and save the detector."""
    require(vars(options), "network", "val", "output")
    from ..evaluation.scoring import fit_folders  # imports torch
    from ..plugin.import_hook import keep_memory

    keep_memory()
    fit_folders(vars(options), print)
    return 0

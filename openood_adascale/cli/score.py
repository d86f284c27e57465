"""``openood-adascale score``: score images with a fitted detector."""

from __future__ import annotations

import argparse
import sys

from ..errors import SettingError
from .options import add_network, add_passes, describe, group, require
from .output import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    describe(
        parser,
        "Score images and write a row for each: path, predicted class and its name, score (larger is more "
        "in-distribution), and 1 in the column ood if the score is below the threshold. An interrupted run with -o "
        "goes on if the same command is given again. Images that cannot be read are listed at the end. Exit status: "
        "0, 1 if some images could not be read (0 with --skip-broken), 2 if nothing could be done.",
        "openood-adascale score detector.safetensors new/ \\\n      --network file.py:network -o scores.csv",
        usage="DETECTOR PATH ... [-o FILE] [OPTIONS]",
    )
    add = group(parser)
    add("detector", "file of openood-adascale fit or detector.save (required)", metavar="DETECTOR")
    add(
        "paths",
        "images, folders of them, image lists (.txt) or CSVs; or Parquet files, WebDataset shards (.tar) or URLs "
        "(s3://bucket/path), with a folder as --output (required)",
        metavar="PATH",
        nargs="+",
    )
    add_network(parser, fitted=True)
    add = group(parser, "output")
    add(
        "-o --output FILE",
        "output file (default: standard output); a folder of Parquet files for Parquet, shards and URLs",
    )
    add("--format NAME", "csv, jsonl or parquet (default: that of the output's name, else csv)")
    add(
        "--tpr SHARE",
        "share of the ID validation images above the threshold, in (0, 1] (default: %(default)s)",
        type=float,
        default=0.95,
    )
    add("--image-column NAME", "column of Parquet files (default: %(default)s)", default="image")
    add_passes(parser, "exit with 0 although images cannot be read (default: exit with 1)", precision=False)


def execute(options: argparse.Namespace) -> int:
    """Score the images; 1 if some could not be read."""
    from ..evaluation.bulk import is_bulk
    from ..evaluation.scoring import score_folders  # imports torch
    from ..plugin.import_hook import keep_memory

    keep_memory()
    bulk = [is_bulk(path) for path in options.paths]
    if any(bulk):
        return _score_bulk(options, all(bulk))
    try:
        found = score_folders(vars(options), complain, sys.stdout)
    except KeyboardInterrupt:
        go_on = f"; the same command goes on from {options.output}.partial" if options.output else ""
        complain(f"openood-adascale score: interrupted{go_on}")
        return 130
    output = f"; {options.output}" if options.output else ""
    complain(f"{found.ood} of {found.images} images are OOD{output}")
    if found.broken:
        complain(f"{len(found.broken)} images could not be read:")
        for path, why in found.broken:
            complain(f"  {path}: {why}")
    return int(bool(found.broken) and not options.skip_broken)


def _score_bulk(options: argparse.Namespace, all_bulk: bool) -> int:
    """Score Parquet files, shards or URLs; 1 if some images could not be read."""
    from ..evaluation.bulk import score_dataset

    if not all_bulk:
        allowed = "only Parquet files, shards and URLs together, or none of them"
        raise SettingError("PATH", options.paths, allowed)
    require(vars(options), "output")
    if options.format not in (None, "parquet"):
        raise SettingError("--format", options.format, "parquet for Parquet files, shards and URLs")
    found = score_dataset(
        options.detector,
        options.paths,
        options.output,
        network=options.network,
        weights=options.weights,
        transform=options.transform,
        image_column=options.image_column,
        tpr=options.tpr,
        batch_size=options.batch_size or 64,
        device=options.device,
        progress=False if options.quiet else None,
    )
    complain(
        f"{found.ood} of {found.images} images are OOD; {found.errors} could not be read; "
        f"{options.output}: {found.parts} files, {found.new_parts} of them new"
    )
    return int(bool(found.errors) and not options.skip_broken)

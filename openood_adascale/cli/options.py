"""Options that commands share: a network, how images are read, and what a report shows of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..errors import SettingError


def add_network(parser: argparse.ArgumentParser) -> None:
    """``--network``, ``--weights``, ``--transform``."""
    add = parser.add_argument
    add(
        "--network",
        metavar="SPEC",
        help="torchvision:NAME, timm:NAME, package.module:function or file.py:function",
    )
    add("--weights", metavar="FILE", help="a state dict (.pth, .safetensors), or default, the library's own")
    add(
        "--transform", metavar="SPEC", help="whose preprocessing; without it, the weights' or the model's own"
    )


def add_reading(parser: argparse.ArgumentParser) -> None:
    """How images are read, where the network runs and where its activations are kept."""
    add = parser.add_argument
    add("--batch-size", type=int, metavar="N", help="64 without this")
    add("--workers", type=int, metavar="N", help="processes that read images; 2 without this")
    add("--device", help="cpu, cuda, …; CUDA where there is any without this")
    add(
        "--skip-broken", action="store_true", default=None,
        help="leave out, count and list images that cannot be read; reads each image once more",
    )  # fmt: skip
    add(
        "--store",
        metavar="DIR",
        help="keep the images' activations in this folder; OPENOOD_ADASCALE_STORE without this",
    )
    add("-q", "--quiet", action="store_true", default=None, help="no progress bars")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """``--precision``."""
    parser.add_argument("--precision", help="of the network's passes: float32, bfloat16, float16 or auto")


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """``--pair``, ``--images`` and ``--published`` of a report."""
    add = parser.add_argument
    add(
        "--pair",
        metavar="A,B",
        help="two methods: show the images on which they disagree (AdaSCALE-A and the best other without this)",
    )
    add(
        "--images",
        type=int,
        metavar="N",
        help="so many images of a kind at most; 8 without this, 0 shows none",
    )
    add(
        "--published",
        metavar="DATASET:NETWORK",
        help="whose published figures stand beside the run's, e.g. imagenet:resnet50, or none; those that the run's "
        "folder is named after without this",
    )


def pictures_chosen(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of ``report.write`` that :func:`add_pictures` lets choose.

    Raises:
        SettingError: not two names, or no whole number from 0 on.
    """
    found: dict[str, Any] = {}
    if (pair := chosen.get("pair")) is not None:
        names = pair.split(",") if isinstance(pair, str) else list(pair)
        found["pair"] = [str(name).strip() for name in names]
        if len(names) != 2:
            raise SettingError("--pair", pair, "two methods separated by a comma")
    if (images := chosen.get("images")) is not None:
        if not isinstance(images, int) or isinstance(images, bool) or images < 0:
            raise SettingError("--images", images, "a whole number from 0 on")
        found["images"] = images
    if (published := chosen.get("published")) is not None:
        found["published"] = str(published)
    return found

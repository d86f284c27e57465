"""Options that commands share: a network, and how images are read."""

from __future__ import annotations

import argparse


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

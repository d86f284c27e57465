"""Options that commands share, and the checks of required ones."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import SettingError

METHODS = "msp, ebo, scale, lts, bfact, optfs, adascale, adascale_logit"
"""Names in :mod:`~openood_adascale.detectors.registry`, repeated here since that module imports torch."""


class UsageError(ValueError):
    """Options that are missing."""


def require(chosen: Mapping[str, Any], *names: str) -> None:
    """Check that options are given; missing ones are named together.

    Args:
        chosen: Options by name.
        names: Names; ``A|B`` stands for at least one of A and B.

    Raises:
        UsageError: Some are missing.
    """
    missing = [name for name in names if not any(chosen.get(one) for one in name.split("|"))]
    if missing:
        words = [" or ".join(f"--{one.replace('_', '-')}" for one in name.split("|")) for name in missing]
        raise UsageError(f"missing required option{'s' * (len(missing) > 1)}: {', '.join(words)}")


def describe(parser: argparse.ArgumentParser, description: str, *examples: str, usage: str = "") -> None:
    """Set a command's description, the examples at the end of its help, and a usage line of the main options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(description, 78)
    parser.epilog = "\n  ".join(["example:" if len(examples) == 1 else "examples:", *examples])
    parser.usage = f"%(prog)s {usage}" if usage else None


def group(
    parser: argparse.ArgumentParser, title: str = "", description: str | None = None
) -> Callable[..., Any]:
    """Return a function that adds options to a new group, such as ``add("-o --output DIR", "output folder")``.

    An option without a metavar is a switch, which is None if it is not given.
    """
    target = parser.add_argument_group(title, description) if title else parser

    def add(option: str, text: str, **more: Any) -> None:
        words = option.split()
        if words[-1].startswith("-"):
            more = {"action": "store_true", "default": None, **more}
        elif len(words) > 1:
            more["metavar"] = words.pop()
        target.add_argument(*words, help=text, **more)

    return add


def add_network(parser: argparse.ArgumentParser, fitted: bool = False) -> None:
    """Add ``--network``, ``--weights`` and ``--transform``; a fitted detector's file may name all three."""
    add = group(parser, "network")
    default_weights = "required for torchvision: and timm:; default: those of the function or of hf:"
    add(
        "--network SPEC",
        "torchvision:NAME, timm:NAME, hf:NAME or hf:FOLDER (Hugging Face), package.module:function or file.py:function "
        f"({'default: that of the detector, if it is of a library' if fitted else 'required'})",
    )
    add(
        "--weights FILE",
        "state dict or checkpoint (.pth, .safetensors), or 'default' for the library's own "
        f"({'default: those of the detector' if fitted else default_weights})",
    )
    add(
        "--transform SPEC",
        "torchvision:NAME, timm:NAME, hf:NAME, a function, or any of size=224,resize=256,mean=0.5,std=0.5 and "
        f"interpolation=bicubic (default: that of the {'detector' if fitted else 'weights, or of the function'})",
    )


def add_labels(parser: argparse.ArgumentParser, images: str) -> None:
    """Add ``--labels`` and ``--classes``."""
    add = group(parser, "labels")
    add(
        "--labels HOW",
        f"'folders' if each class of {images} has a folder of its own, or a CSV with the columns path and label "
        "(default: the labels of a list; a folder has none)",
    )
    add(
        "--classes FILE",
        "names of the network's classes, one in each line, to which class folders are matched (default: those of the "
        "library, or of the folders if there is one for each class)",
    )


def add_passes(parser: argparse.ArgumentParser, skip_broken: str, precision: bool = True) -> None:
    """Add options for reading images and for the forward passes."""
    add = group(parser, "reading images")
    add("--batch-size N", "images in a batch of the loader (default: 64)", type=int)
    add("--workers N", "processes that read images (default: 2)", type=int)
    add("--skip-broken", skip_broken)
    add = group(parser, "forward passes")
    add("--device DEVICE", "cpu, cuda, cuda:1, mps (default: cuda if available, else cpu)")
    if precision:
        add("--precision NAME", "float32, bfloat16, float16 or auto (default: float32)")
        text = "images in a forward pass (default: the loader's batch; on a CPU chunks that fit its caches)"
        add("--forward-batch-size N", text, type=int)
    add(
        "--cache-dir DIR",
        "feature cache; a later command runs the network on no image that is in it (default: "
        "$OPENOOD_ADASCALE_CACHE_DIR, else none)",
    )
    add(
        "--cache-tag TEXT",
        "text that stands in for transforms and networks without a comparable representation in the cache (default: "
        "these are not cached)",
    )
    group(parser)("-q --quiet", "hide progress bars (default: shown in a terminal)")
    add_ray(parser)


def add_ray(parser: argparse.ArgumentParser) -> None:
    """Add ``--ray``, ``--ray-workers`` and ``--ray-dashboard``."""
    add = group(parser, "several GPUs and machines")
    add(
        "--ray ADDRESS",
        "run the forward passes on Ray workers: local, auto or HOST:PORT (default: $OPENOOD_ADASCALE_RAY, else in this "
        "process)",
    )
    text = "number of workers (default: the GPUs of the cluster; required without GPUs)"
    add("--ray-workers N", text, type=int)
    add("--ray-dashboard", "start Ray's dashboard (default: no)")


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--compare-methods``, ``--max-images`` and ``--reference``."""
    add = group(parser, "report")
    add(
        "--compare-methods A,B",
        "two methods; show the images on which they disagree (default: AdaSCALE-A and the best other)",
    )
    add("--max-images N", "largest number of images in a row, 0 for none (default: 8)", type=int)
    add(
        "--reference DATASET:NETWORK",
        "published results to show beside the run's, e.g. imagenet:resnet50, or none (default: those of the run's "
        "dataset and network)",
    )


def report_options(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of ``write_report`` that :func:`add_report_options` adds.

    Raises:
        SettingError: If a value is not allowed.
    """
    found = {name: chosen[name] for name in ("max_images", "reference") if chosen.get(name) is not None}
    if found.get("max_images", 0) < 0:
        raise SettingError("--max-images", found["max_images"], "a whole number, 0 or more")
    if (methods := chosen.get("compare_methods")) is not None:
        found["compare_methods"] = methods.split(",")
        if len(found["compare_methods"]) != 2:
            raise SettingError("--compare-methods", methods, "two methods separated by a comma")
    return found


@contextmanager
def chosen_pool(options: argparse.Namespace) -> Iterator[None]:
    """Use the pool of workers that a command's options ask for.

    Raises:
        PoolError: torchrun has started several processes, or the pool cannot be used.
    """
    if not hasattr(options, "ray"):
        yield
        return
    from ..parallel import ray_workers, refuse_torchrun

    refuse_torchrun()
    if options.ray is None and options.ray_workers is None and not options.ray_dashboard:
        yield
        return
    with ray_workers(options.ray_workers, options.ray or "local", bool(options.ray_dashboard)):
        yield

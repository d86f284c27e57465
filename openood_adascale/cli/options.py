"""Options that commands share, and the checks of required ones."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import SettingError


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


def describe(parser: argparse.ArgumentParser, description: str, *examples: str) -> None:
    """Set a command's description and, at the end of its help, examples."""
    parser.description = textwrap.fill(description, 79)
    parser.epilog = "\n  ".join(["example:" if len(examples) == 1 else "examples:", *examples])


def add_network(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--network``, ``--weights``, ``--transform`` and ``--classes``."""
    add = parser.add_argument_group("network").add_argument
    add(
        "--network",
        metavar="SPEC",
        help="torchvision:NAME, timm:NAME, hf:NAME or hf:FOLDER (Hugging Face), package.module:function or "
        f"file.py:function ({'required' if required else 'default: the one that the detector was fitted for'})",
    )
    add(
        "--weights",
        metavar="FILE",
        help="state dict or checkpoint (.pth, .safetensors), or 'default' for the library's own (default: those of "
        "the function or of hf:; required for torchvision: and timm:)",
    )
    add(
        "--transform",
        metavar="SPEC",
        help="torchvision:NAME, timm:NAME, hf:NAME, a function, or size=224,resize=256,mean=…,std=… (default: that of "
        "the weights, or of the function)",
    )


def add_classes(parser: argparse.ArgumentParser, images: str) -> None:
    """Add ``--labels`` and ``--classes``."""
    add = parser.add_argument_group("labels").add_argument
    add(
        "--labels",
        metavar="HOW",
        help=f"'folders' if each class of {images} has a folder of its own, or a CSV with the columns path and label "
        "(default: the labels of a list; a folder has none)",
    )
    add(
        "--classes",
        metavar="FILE",
        help="names of the network's classes, one in each line, to which class folders are matched (default: those of "
        "the library, or of the folders if there is one for each class)",
    )


def add_reading(parser: argparse.ArgumentParser, skip_broken: str) -> None:
    """Add options for reading images, and for the device, precision and cache of the forward passes."""
    add = parser.add_argument_group("reading images").add_argument
    add("--batch-size", type=int, metavar="N", help="images in a batch of the loader (default: 64)")
    add("--workers", type=int, metavar="N", help="processes that read images (default: 2)")
    add("--skip-broken", action="store_true", default=None, help=skip_broken)
    add = parser.add_argument_group("forward passes").add_argument
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps (default: cuda if available, else cpu)")
    add(
        "--cache-dir",
        metavar="DIR",
        help="feature cache; a later command runs the network on no image that is in it (default: "
        "$OPENOOD_ADASCALE_CACHE_DIR, else none)",
    )
    add(
        "--cache-tag",
        metavar="TEXT",
        help="text that stands in for transforms and networks without a comparable representation in the cache "
        "(default: these are not cached)",
    )
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        default=None,
        help="hide progress bars (default: shown in a terminal)",
    )


def add_ray(parser: argparse.ArgumentParser) -> None:
    """Add ``--ray``, ``--ray-workers`` and ``--ray-dashboard``."""
    add = parser.add_argument_group("several GPUs and machines").add_argument
    add(
        "--ray",
        metavar="ADDRESS",
        help="run the forward passes on Ray workers: local, auto or HOST:PORT (default: $OPENOOD_ADASCALE_RAY, else "
        "in this process)",
    )
    add(
        "--ray-workers",
        type=int,
        metavar="N",
        help="number of workers (default: the GPUs of the cluster; required without GPUs)",
    )
    add("--ray-dashboard", action="store_true", default=None, help="start Ray's dashboard (default: no)")


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


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add ``--precision`` and ``--forward-batch-size``."""
    add = parser.add_argument_group("precision").add_argument
    add(
        "--precision",
        metavar="NAME",
        help="precision of the forward passes: float32, bfloat16, float16 or auto (default: float32)",
    )
    add(
        "--forward-batch-size",
        type=int,
        metavar="N",
        help="images in a forward pass (default: the loader's batch; on a CPU chunks that fit its caches)",
    )


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--compare-methods``, ``--max-images`` and ``--reference``."""
    add = parser.add_argument_group("report").add_argument
    add(
        "--compare-methods",
        metavar="A,B",
        help="two methods; show the images on which they disagree (default: AdaSCALE-A and the best other)",
    )
    add(
        "--max-images",
        type=int,
        metavar="N",
        help="largest number of images in a row, 0 for none (default: 8)",
    )
    add(
        "--reference",
        metavar="DATASET:NETWORK",
        help="published results to show beside the run's, e.g. imagenet:resnet50, or none (default: those of the run's "
        "dataset and network)",
    )


def report_options(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of ``write_report`` that :func:`add_report_options` adds.

    Raises:
        SettingError: If a value is not allowed.
    """
    found: dict[str, Any] = {}
    if (methods := chosen.get("compare_methods")) is not None:
        found["compare_methods"] = methods.split(",") if isinstance(methods, str) else list(map(str, methods))
        if len(found["compare_methods"]) != 2:
            raise SettingError("--compare-methods", methods, "two methods separated by a comma")
    if (count := chosen.get("max_images")) is not None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise SettingError("--max-images", count, "a whole number, 0 or more")
        found["max_images"] = count
    if (reference := chosen.get("reference")) is not None:
        found["reference"] = str(reference)
    return found


def names_and_places(option: str, given: Mapping[Any, Any] | Sequence[Any] | None) -> dict[str, str]:
    """Return the sets of a mapping, or of words ``NAME=DIR``.

    Raises:
        SettingError: Another form, or a name twice.
    """
    if isinstance(given, Mapping):
        return {str(key): str(place) for key, place in given.items()}
    sets: dict[str, str] = {}
    for word in given or ():
        name, equals, place = str(word).partition("=")
        if not (name and equals and place) or name in sets:
            raise SettingError(f"--{option}", word, "NAME=DIR, each name once")
        sets[name] = place
    return sets

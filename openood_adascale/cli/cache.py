"""``openood-adascale cache``: list or clear a feature cache."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from ..errors import SettingError
from .options import UsageError, describe
from .output import printable

if TYPE_CHECKING:
    from ..features.cache import CacheEntry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    describe(
        parser,
        "List or clear the entries of a feature cache: features of images under one network.",
        "openood-adascale cache list --cache-dir features",
        "openood-adascale cache clear 3f2a --cache-dir features",
    )
    add = parser.add_argument
    add("action", choices=["list", "clear"], help="list the entries, or remove them (required)")
    add("keys", nargs="*", metavar="KEY", help="first letters of the keys of entries (default: all entries)")
    add("--cache-dir", metavar="DIR", help="the cache (default: $OPENOOD_ADASCALE_CACHE_DIR)")


def execute(options: argparse.Namespace) -> int:
    """List or remove entries."""
    from ..features.cache import VARIABLE, open_cache, readable  # imports torch

    directory = options.cache_dir or os.environ.get(VARIABLE, "").strip()
    if not directory:
        raise UsageError(f"missing required option: --cache-dir (or ${VARIABLE})")
    entries = open_cache(directory).entries()
    for key in options.keys:
        if not any(entry.folder.name.startswith(key) for entry in entries):
            raise SettingError(
                "KEY", key, f"the first letters of a key in openood-adascale cache list ({directory})"
            )
    keys = tuple(options.keys) or ("",)
    chosen = [entry for entry in entries if entry.folder.name.startswith(keys)]
    size = readable(sum(entry.size for entry in chosen))
    if options.action == "clear":
        for entry in chosen:
            entry.remove()
        print(f"removed {len(chosen)} of {len(entries)} entries, {size}")
        return 0
    for entry in chosen:
        print(_line(entry, readable(entry.size)))
    print(f"{len(chosen)} entries, {size}")
    return 0


def _line(entry: CacheEntry, size: str) -> str:
    about = entry.about
    count = int(about.get("N", 0))
    parts = [f"{name} {min(rows, count)}/{count}" for name, rows in sorted(entry.parts().items())]
    told = " ".join(
        printable(str(about[name])) for name in ("network", "dataset", "root", "created") if name in about
    )
    return f"{entry.folder.name[:8]}  {size:>8}  {told}  {', '.join(parts) or 'nothing yet'}"

"""``openood-adascale cache``: list or clear a feature cache."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from ..errors import SettingError
from ..io import printable
from .options import UsageError, describe, group

if TYPE_CHECKING:
    from ..features.cache import CacheEntry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    describe(
        parser,
        "List or clear the entries of a feature cache. An entry holds the features of a dataset under one network.",
        "openood-adascale cache list --cache-dir features",
        "openood-adascale cache clear 3f2a --cache-dir features",
    )
    add = group(parser)
    add("action", "list the entries, or clear them (required)", choices=["list", "clear"])
    add("keys", "first letters of the keys of entries (default: all entries)", nargs="*", metavar="KEY")
    add("--cache-dir DIR", "the cache (default: $OPENOOD_ADASCALE_CACHE_DIR)")


def execute(options: argparse.Namespace) -> int:
    """List or remove entries."""
    from ..features.cache import VARIABLE, FeatureCache, readable  # imports torch

    directory = options.cache_dir or os.environ.get(VARIABLE, "").strip()
    if not directory:
        raise UsageError(f"missing required option: --cache-dir or ${VARIABLE}")
    entries = FeatureCache(directory, create=False).entries()
    for key in options.keys:
        if not any(entry.folder.name.startswith(key) for entry in entries):
            raise SettingError(
                "KEY", key, f"the first letters of a key in openood-adascale cache list ({directory})"
            )
    chosen = [entry for entry in entries if entry.folder.name.startswith(tuple(options.keys) or "")]
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
    names = ("network", "dataset", "root", "created")
    told = [printable(str(entry.about[name])) for name in names if name in entry.about]
    return f"{entry.folder.name[:8]}  {size:>8}  {' '.join(told)}  {entry.about.get('N', 0)} images"

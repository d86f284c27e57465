"""``openood-adascale store``: what a store on disk holds, and removing it."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..errors import StoreError
from .output import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.description = (
        "A store holds the activations of images that went through a network, so that they need not again."
    )
    parser.add_argument("action", choices=["list", "clear"], help="show the entries, or remove them")
    parser.add_argument(
        "keys", nargs="*", metavar="KEY", help="the first letters of entries' keys; all without"
    )
    parser.add_argument("--store", metavar="DIR", help="the store; OPENOOD_ADASCALE_STORE without this")


def execute(options: argparse.Namespace) -> int:
    """Show or remove entries; 2 where there is no such store or no such entry."""
    from ..evidence.disk import DiskEntry, open_store, readable  # imports torch
    from ..evidence.sharing import VARIABLE

    folder = options.store or os.environ.get(VARIABLE, "")
    if not folder:
        complain(f"openood-adascale store: no store given; expected --store DIR, or {VARIABLE}")
        return 2
    try:
        entries = list(open_store(folder))
    except StoreError as error:
        complain(f"openood-adascale {error}")
        return 2
    for key in options.keys:
        if not any(entry.folder.name.startswith(key) for entry in entries):
            complain(
                f"openood-adascale store: no entry's key begins with {key!r}; see openood-adascale store list"
            )
            return 2
    keys = tuple(options.keys) or ("",)
    chosen: list[DiskEntry] = [entry for entry in entries if entry.folder.name.startswith(keys)]
    if options.action == "clear":
        size = sum(entry.size for entry in chosen)
        try:
            for entry in chosen:
                entry.remove()
        except StoreError as error:
            complain(f"openood-adascale {error}")
            return 2
        print(f"removed {len(chosen)} of {len(entries)} entries, {readable(size)}")
        return 0
    for entry in chosen:
        print(_line(entry.folder.name, entry.about or {}, entry.parts(), readable(entry.size)))
    print(f"{len(chosen)} entries, {readable(sum(entry.size for entry in chosen))}")
    return 0


def _line(key: str, about: dict[str, Any], parts: dict[str, int], size: str) -> str:
    count = int(about.get("N", 0))
    kept = (
        ", ".join(f"{name} {min(rows, count)}/{count}" for name, rows in sorted(parts.items()))
        or "nothing yet"
    )
    told = " ".join(str(about.get(name, "?")) for name in ("layers", "precision", "data", "begun"))
    return f"{key[:8]}  {size:>8}  {told}  {kept}"

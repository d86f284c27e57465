"""Which image files a folder, an image list or a CSV names, and which classes."""

from __future__ import annotations

import ast
import csv
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SettingError
from .images import extensions

_PASSED_OVER = "__MACOSX"
Ancestors = tuple[tuple[int, int], "Ancestors | None"]
"""Device and inode of a folder, and the same of the one that it was found in."""


@dataclass
class Listed:
    """Image files."""

    paths: list[str]
    labels: list[int]
    """One of each; −1 for unknown."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes, where they are known."""


def in_folder(folder: str, by_folders: bool) -> Listed:
    """All images in a folder and those in it, sorted by name.

    Args:
        folder: of the images.
        by_folders: whether the folders in it are the classes.

    Raises:
        SettingError: a folder cannot be read, or an image is in no class's.
    """
    found = sorted(_walk(folder), key=_place)
    paths = [os.path.join(folder, *parts) for parts in found]
    if not (by_folders and paths):
        return Listed(paths, [-1] * len(paths))
    # All of them: one that happens to hold no image must not move the others.
    classes = sorted(
        entry.name for entry in _entries(folder) if _is_folder(entry) and not _is_hidden(entry.name)
    )
    numbers = {name: number for number, name in enumerate(classes)}
    if not classes:
        raise SettingError("labels", "folders", f"a folder for each class; {folder} has none")
    for path, parts in zip(paths, found, strict=True):
        if len(parts) == 1:
            raise SettingError("labels", "folders", f"each image in a folder of its class; {path!r} is not")
    return Listed(paths, [numbers[parts[0]] for parts in found], classes)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == _PASSED_OVER


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Of a link to itself, entry.is_dir() raises.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Dead links, too: they have been meant as images, and whoever reads them is told."""
    if not entry.is_symlink():
        return entry.is_file()
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise SettingError("images", folder, f"a folder that can be read ({error.strerror})") from error


def _walk(root: str) -> Iterator[tuple[str, ...]]:
    """The images' places below ``root``, in no order."""
    ends = extensions()
    waiting: list[tuple[tuple[str, ...], Ancestors | None]] = [((), None)]
    while waiting:
        parts, above = waiting.pop()
        here = os.path.join(root, *parts)
        entries = _entries(here)
        state = os.stat(here)
        identity = state.st_dev, state.st_ino
        if _among(identity, above):  # a link back
            continue
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if _is_folder(entry):
                waiting.append(((*parts, entry.name), (identity, above)))
            elif os.path.splitext(entry.name)[1].lower() in ends and _is_file(entry):
                yield (*parts, entry.name)


def _among(identity: tuple[int, int], above: Ancestors | None) -> bool:
    while above is not None:
        if above[0] == identity:
            return True
        above = above[1]
    return False


def _place(parts: tuple[str, ...]) -> tuple[Any, ...]:
    """What paths are sorted by: image2 before image10, image before both, and small and capital letters together."""
    *folders, name = parts
    without_end = os.path.splitext(name)[0]
    return [*((_words(folder), ()) for folder in folders), (_words(without_end), _words(name))], parts


def _words(text: str) -> tuple[tuple[int, int, str], ...]:
    words = re.split(r"([0-9]+)", text.casefold())
    return tuple(
        (0, int(word), "") if word.isdecimal() and word.isascii() else (1, 0, word) for word in words if word
    )


def _lines(name: str) -> Iterator[str]:
    # Names in other encodings are kept as they are.
    try:
        with open(name, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from file
    except OSError as error:
        raise SettingError("images", name, f"a list that can be read ({error.strerror})") from error


def from_list(name: str, base: str) -> Listed:
    """OpenOOD's image list: in each line a path, a space and a label (or a dict with one).

    Args:
        name: of the list.
        base: the folder that its paths begin at.

    Raises:
        SettingError: it cannot be read, or a label is too large.
    """
    listed = Listed([], [])
    for number, line in enumerate(_lines(name), 1):
        text = line.strip()
        if not text:
            continue
        path, label = _path_and_label(text)
        listed.paths.append(os.path.join(base, path))
        listed.labels.append(_label(name, number, label))
    return listed


def _path_and_label(text: str) -> tuple[str, str]:
    whole = re.fullmatch(r"(.*\S)\s+([+-]?\d+)", text)  # OpenOOD's paths have no spaces, others' may
    if whole:
        return whole[1], whole[2]
    path, _, extra = text.partition(" {")
    if extra:
        try:
            found = ast.literal_eval("{" + extra)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as Python has it
            return text, ""
        if isinstance(found, Mapping):
            label = found.get("label")
            return path.strip(), repr(label) if type(label) is int else ""
    return text, ""


def from_csv(name: str, base: str, setting: str = "images") -> Listed:
    """A CSV with the columns path and, perhaps, label.

    Args:
        name: of the CSV.
        base: the folder that its paths begin at.
        setting: what it was given as: images, or labels, which it must then have.

    Raises:
        SettingError: it lacks a column, or a label is no whole number.
    """
    listed = Listed([], [])
    try:
        rows = csv.DictReader(_lines(name), skipinitialspace=True)
        columns = [(column or "").strip().lower() for column in rows.fieldnames or ()]
        if "path" not in columns or (setting == "labels" and "label" not in columns):
            raise SettingError(
                setting, name, f"a CSV with the columns path and label; it has {', '.join(columns)}"
            )
        rows.fieldnames = columns
        for row in rows:
            if row["path"]:
                listed.paths.append(os.path.join(base, row["path"]))
                listed.labels.append(_label(name, rows.line_num, row.get("label")))
    except csv.Error as error:
        raise SettingError(setting, name, f"a CSV ({error})") from error
    return listed


def _label(name: str, line: int, text: str | None) -> int:
    text = (text or "").strip()
    if not text:
        return -1
    try:
        number = float(text)  # pandas writes whole numbers beside gaps as 3.0
    except ValueError:
        number = 0.5
    if not (abs(number) < 2**53 and number == int(number)):
        raise SettingError("labels", text, f"a whole number, the class ({name}, line {line})")
    return int(number)

"""Image files and labels in a folder, an image list or a CSV."""

from __future__ import annotations

import ast
import codecs
import csv
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SettingError
from .decoding import extensions

_IGNORED = "__MACOSX"
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
Ancestors = tuple[tuple[int, int], "Ancestors | None"]
"""Device and inode of a folder, and the same of its parent."""


@dataclass
class Listed:
    """Image files and their labels."""

    paths: list[str]
    labels: list[int]
    """One for each path, −1 for unlabelled."""
    classes: list[str] = field(default_factory=list)
    """Names of the class folders, if the labels are their numbers."""


# Folders.


def list_folder(folder: str, class_folders: bool) -> Listed:
    """List all images below a folder, sorted by name.

    Args:
        folder: The folder.
        class_folders: True if the folders in it are the classes.

    Raises:
        SettingError: A folder cannot be read, or an image is in no class folder.
    """
    found = sorted(_walk(folder), key=natural_order)
    paths = [os.path.join(folder, *parts) for parts in found]
    if not (class_folders and paths):
        return Listed(paths, [-1] * len(paths))
    # Empty ones as well: a class without images must not shift the others.
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
    return name.startswith(".") or name == _IGNORED


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # entry.is_dir() raises for a link to itself.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return True for files and dead links, which are reported when they are read."""
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
    """Yield the images' paths below ``root``, as parts and in no order."""
    ends = extensions()
    waiting: list[tuple[tuple[str, ...], Ancestors | None]] = [((), None)]
    while waiting:
        parts, above = waiting.pop()
        here = os.path.join(root, *parts)
        entries = _entries(here)
        state = os.stat(here)
        identity = state.st_dev, state.st_ino
        if _is_ancestor(identity, above):  # a link back
            continue
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if _is_folder(entry):
                waiting.append(((*parts, entry.name), (identity, above)))
            elif os.path.splitext(entry.name)[1].lower() in ends and _is_file(entry):
                yield (*parts, entry.name)


def _is_ancestor(identity: tuple[int, int], above: Ancestors | None) -> bool:
    while above is not None:
        if above[0] == identity:
            return True
        above = above[1]
    return False


def natural_order(parts: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the key that sorts image2 before image10, image before both, and upper and lower case together."""
    *folders, name = parts
    without_end = os.path.splitext(name)[0]
    return [*((_words(folder), ()) for folder in folders), (_words(without_end), _words(name))], parts


def _words(text: str) -> tuple[tuple[int, int, str], ...]:
    words = re.split(r"([0-9]+)", text.casefold())
    return tuple(
        (0, int(word), "") if word.isdecimal() and word.isascii() else (1, 0, word) for word in words if word
    )


# Image lists and CSVs.


def read_text(setting: str, path: str) -> str:
    """Return the content of a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Bytes of other encodings are kept as surrogates, so that file names stay as they are.

    Raises:
        SettingError: It cannot be read, or is no text.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise SettingError(setting, path, f"a file that can be read ({error.strerror})") from error
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    try:
        if encoding is not None:
            return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise SettingError(setting, path, f"a whole text file in UTF-8 ({error})") from error
    if b"\0" in content:
        raise SettingError(
            setting, path, "a text file in UTF-8; it has zero bytes, as UTF-16 and binary files have"
        )
    return content.decode("utf-8", "surrogateescape")


def read_list(name: str, base: str) -> Listed:
    """Read an image list of OpenOOD's: a path, a space and a label (or a dict with one) in each line.

    Args:
        name: The list.
        base: Folder that its paths are relative to.

    Raises:
        SettingError: It cannot be read, or a label is no class.
    """
    listed = Listed([], [])
    for number, line in enumerate(re.split(r"\r\n|\r|\n", read_text("images", name)), 1):
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
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # any of these from Python
            return text, ""
        if isinstance(found, Mapping):
            label = found.get("label")
            return path.strip(), repr(label) if type(label) is int else ""
    return text, ""


def read_csv(name: str, base: str, setting: str = "images") -> Listed:
    """Read a CSV with the columns path and, perhaps, label.

    Args:
        name: The CSV.
        base: Folder that its paths are relative to.
        setting: ``images``, or ``labels`` for a CSV that must have labels.

    Raises:
        SettingError: It lacks a column, or a label is no class.
    """
    listed = Listed([], [])
    try:
        rows = csv.DictReader(io.StringIO(read_text(setting, name), newline=""), skipinitialspace=True)
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

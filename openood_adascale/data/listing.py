"""Image files and labels in a folder, an image list or a CSV."""

from __future__ import annotations

import ast
import codecs
import csv
import io
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import SettingError
from .decoding import extensions

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
Listed = tuple[list[str], list[int]]
"""Paths, and a label for each, −1 for unlabelled."""


# Folders.


def list_folder(folder: str) -> list[str]:
    """Return the paths of all images below a folder, sorted by name with numbers as numbers.

    Links are followed, but not back to a parent. Hidden files and ``__MACOSX`` are left out.
    """
    return sorted(_images_below(folder, frozenset()), key=lambda path: natural_order(path[len(folder) :]))


def class_folders(folder: str) -> list[str]:
    """Return the names of the folders in a folder, sorted as torchvision's ``ImageFolder`` sorts them."""
    return sorted(entry.name for entry in _entries(folder) if os.path.isdir(entry.path))


def _images_below(folder: str, parents: frozenset[str]) -> Iterator[str]:
    place = os.path.realpath(folder)
    if place in parents:  # a link back
        return
    for entry in _entries(folder):
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            yield from _images_below(entry.path, parents | {place})
        elif os.path.splitext(entry.name)[1].lower() in extensions():
            yield entry.path


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name != "__MACOSX" and entry.name[0] != "."]
    except OSError as error:
        raise SettingError(
            "images", error.filename, f"a folder that can be read ({error.strerror})"
        ) from error


def natural_order(path: str) -> Any:
    """Return the key that sorts image2 before image10, image before both, and upper and lower case together."""
    parts = os.path.splitext(path)[0].casefold().split(os.sep)
    words = (re.split(r"([0-9]+)", part) for part in parts)  # text and numbers in turn
    return [[int(word) if place % 2 else word for place, word in enumerate(part)] for part in words], path


# Image lists and CSVs.


def read_text(setting: str, path: str) -> str:
    """Return the content of a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Bytes of other encodings are kept as surrogates, so that file names stay as they are.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        for mark, encoding in _BYTE_ORDER_MARKS.items():
            if content.startswith(mark):
                return content.decode(encoding)
    except OSError as error:
        raise SettingError(setting, path, f"a file that can be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SettingError(setting, path, f"a whole text file in UTF-8 ({error})") from error
    if b"\0" in content:
        allowed = "a text file in UTF-8; it has zero bytes, as UTF-16 and binary files have"
        raise SettingError(setting, path, allowed)
    return content.decode("utf-8", "surrogateescape")


def read_list(name: str, base: str) -> Listed:
    """Read an image list of OpenOOD's: a path below ``base``, a space and a label (or a dict with one) in each line."""
    paths, labels = [], []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", read_text("images", name)), 1):
        if line.strip():
            path, label = _path_and_label(line.strip())
            paths.append(os.path.join(base, path))
            labels.append(_label(name, number, label))
    return paths, labels


def _path_and_label(text: str) -> tuple[str, str]:
    if whole := re.fullmatch(r"(.*\S)\s+([+-]?\d+)", text):  # OpenOOD's paths have no spaces, others' may
        return whole[1], whole[2]
    path, brace, extra = text.partition(" {")
    try:
        found = ast.literal_eval("{" + extra) if brace else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # any of these from Python
        return text, ""
    if not isinstance(found, Mapping):
        return text, ""
    label = found.get("label")
    return path.strip(), repr(label) if type(label) is int else ""


def read_csv(name: str, base: str, setting: str = "images") -> Listed:
    """Read a CSV with the columns path (below ``base``) and label, which is optional unless ``setting`` is ``labels``."""
    paths, labels = [], []
    try:
        rows = csv.DictReader(io.StringIO(read_text(setting, name), newline=""), skipinitialspace=True)
        columns = [(column or "").strip().lower() for column in rows.fieldnames or ()]
        if "path" not in columns or (setting == "labels" and "label" not in columns):
            allowed = f"a CSV with the columns path and label; it has {', '.join(columns)}"
            raise SettingError(setting, name, allowed)
        rows.fieldnames = columns
        for row in rows:
            if row["path"]:
                paths.append(os.path.join(base, row["path"]))
                labels.append(_label(name, rows.line_num, row.get("label")))
    except csv.Error as error:
        raise SettingError(setting, name, f"a CSV ({error})") from error
    return paths, labels


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

"""A data set of one's own as a yml or a dict describes it, checked; what OpenOOD is told of it, see :mod:`~.own_names`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ..detectors.settings import read_yaml
from ..errors import SettingError
from ..evaluation.benchmark import RESERVED
from ..evaluation.folders import FOLDERS, ImageFiles, check_listed, find_images
from ..evaluation.transforms import KEYS as TRANSFORM_KEYS

KEYS = ("name", "classes", "preprocessing", "network", "id", "csid", "ood")
SPLITS = ("train", "val", "test")
_SET = "a folder, an image list (.txt) or a CSV, or images: with one"


@dataclass(frozen=True)
class Classes:
    """The classes that a network tells apart."""

    count: int
    names: tuple[str, ...] = ()
    """In the order of the network's outputs, where they are known."""

    def numbered(self, files: ImageFiles) -> ImageFiles:
        """Images in folders of their classes, with these classes' numbers; images of a list as they are.

        Raises:
            SettingError: a folder is no class's, or one lacks a class, so that the numbers of the others would shift; an
                image has no class, or one that there is not.
        """
        labels = files.labels
        if files.classes and self.names:
            used = [files.classes[label] for label in sorted(set(files.labels))]
            for name in used:
                if name not in self.names:
                    raise SettingError("a class's folder", name, f"one of classes: {', '.join(self.names)}")
            labels = [self.names.index(files.classes[label]) for label in files.labels]
        elif files.classes and len(files.classes) != self.count:
            allowed = f"{self.count} folders, one for each class; or, where some lack, the classes' names as classes"
            raise SettingError("the classes' folders", ", ".join(files.classes), allowed)
        for path, label in zip(files.paths, labels, strict=True):
            if not 0 <= label < self.count:
                allowed = f"a class from 0 to {self.count - 1} for each image; {path!r} has none such"
                raise SettingError("labels", label, allowed)
        return ImageFiles(files.paths, labels)


@dataclass(frozen=True)
class ImageSet:
    """Images of one kind."""

    place: str
    """Where they are named, for errors: file and keys."""
    images: str
    labels: str | None = None
    """``folders`` or a CSV; None for a list, which has its own, and for OOD images, which have none."""
    root: str | None = None
    """The folder that a list's paths begin at."""

    def find(self, classes: Classes | None) -> ImageFiles:
        """The files as they are now.

        Args:
            classes: what their labels are to be of; None for OOD images, whose labels become −1.

        Raises:
            SettingError: there are none, one of a list is not there or has two labels, or a label is missing or wrong.
        """
        try:
            files = find_images(self.images, self.labels, self.root)
            files = ImageFiles(files.paths) if classes is None else classes.numbered(files)
            if not os.path.isdir(self.images):  # what is found in a folder is there
                check_listed(files)
            return files
        except SettingError as error:
            raise error.within(self.place) from error


@dataclass(frozen=True)
class OwnData:
    """What stands in a description."""

    place: str
    """The yml, or what else it came by."""
    name: str
    classes: Classes
    preprocessing: str | Callable[..., Any]
    network: str | None
    """What ``eval_ood.py`` is to load a checkpoint into."""
    known: Mapping[str, ImageSet]
    """By ``train``, ``val`` and ``test``; the first two can lack."""
    shifted: Mapping[str, ImageSet]
    """OpenOOD's ``csid``."""
    ood_val: ImageSet | None
    near: Mapping[str, ImageSet]
    far: Mapping[str, ImageSet]
    loaders: Mapping[str, Any] | None = None
    """As OpenOOD's ``get_id_ood_dataloader`` gives them, where they are there already, and nothing is to be looked for."""

    def look(self) -> None:
        """Look for all images.

        Raises:
            SettingError: as :meth:`ImageSet.find`.
        """
        for images in (*self.known.values(), *self.shifted.values()):
            images.find(self.classes)
        validation = [] if self.ood_val is None else [self.ood_val]
        for images in (*validation, *self.near.values(), *self.far.values()):
            images.find(None)


class _Loader(yaml.SafeLoader):
    """Of two equal keys, YAML itself would drop the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                told = f"the key {key!r} for the second time"
                raise yaml.constructor.ConstructorError(None, None, told, key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


def read(path: str | os.PathLike[str]) -> OwnData:
    """What a yml describes; its relative paths begin at its own folder.

    Raises:
        SettingError: it cannot be read, or says something that cannot be; names file, key, value and what is allowed.
    """
    name = os.path.expanduser(os.fspath(path))
    try:
        with open(name, encoding="utf-8-sig") as file:
            content = read_yaml(file.read(), _Loader)
    except (OSError, ValueError) as error:  # no text, or no path
        why = getattr(error, "strerror", None) or str(error)
        raise SettingError("data set", name, f"a yml that can be read ({why})") from error
    except yaml.YAMLError as error:
        raise SettingError("data set", name, f"valid YAML ({' '.join(str(error).split())})") from error
    return parse(content, name, os.path.dirname(os.path.abspath(name)))


def parse(content: Any, place: str, folder: str) -> OwnData:
    """What a yml's content describes.

    Args:
        content: of the yml, as dicts, lists, texts and numbers.
        place: what errors name it.
        folder: that relative paths begin at.

    Raises:
        SettingError: as :func:`read`.
    """
    found = _section(content, place, KEYS, ("name", "classes", "preprocessing", "id", "ood"))
    known = _section(found["id"], f"{place}: id", SPLITS, ("test",))
    ood = _section(found["ood"], f"{place}: ood", ("val", "near", "far"), ("near", "far"))
    sets = _Sets(folder)
    near = sets.named(ood["near"], f"{place}: ood: near")
    far = sets.named(ood["far"], f"{place}: ood: far")
    for name in near.keys() & far.keys():
        raise SettingError(f"{place}: ood: far: a set's name", name, "a name that no near set has")
    return OwnData(
        place,
        _name(found["name"], place),
        _classes(found["classes"], place),
        _preprocessing(found["preprocessing"], place, folder),
        _network(found.get("network"), place, folder),
        {key: sets.one(value, f"{place}: id: {key}", True) for key, value in known.items()},
        sets.named(found["csid"], f"{place}: csid", True) if "csid" in found else {},
        sets.one(ood["val"], f"{place}: ood: val") if "val" in ood else None,
        near,
        far,
    )


def _section(content: Any, place: str, keys: tuple[str, ...], required: tuple[str, ...]) -> dict[str, Any]:
    allowed = ", ".join(keys)
    if not isinstance(content, Mapping):
        raise SettingError(place, content, f"a section with {allowed}")
    for key, value in content.items():
        if key not in keys:
            raise SettingError(f"{place}: {key}", value, f"one of the keys {allowed}")
        if value is None:
            raise SettingError(f"{place}: {key}", value, "a value, or no such line")
    for key in required:
        if key not in content:
            raise SettingError(f"{place}: {key}", None, f"a value; {', '.join(required)} are needed")
    return dict(content)


def _name(value: Any, place: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"\w[\w.+-]*", value):
        allowed = (
            "a text of letters, digits and . _ + -, the first a letter or digit (in quotes, if a number)"
        )
        raise SettingError(f"{place}: name", value, allowed)
    return value


def _classes(value: Any, place: str) -> Classes:
    if type(value) is int and value >= 2:
        return Classes(value)
    if isinstance(value, list | tuple) and len(value) >= 2:
        # Of folders named 0, 1, …, YAML makes numbers.
        names = [str(name) if type(name) is int else name for name in value]
        if all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names):
            return Classes(len(names), tuple(names))
    allowed = "their number, from 2 on, or a list of different names (yes, no, on, off and dates in quotes)"
    raise SettingError(f"{place}: classes", value, allowed)


def _preprocessing(value: Any, place: str, folder: str) -> str | Callable[..., Any]:
    if isinstance(value, Mapping):
        _section(value, f"{place}: preprocessing", TRANSFORM_KEYS, ())
        return ",".join(f"{key}={_written(part)}" for key, part in value.items())
    if isinstance(value, str) and value:
        return _beginning_at(value, folder)
    if callable(value):
        return value
    raise SettingError(
        f"{place}: preprocessing", value, "a text, or a section with " + ", ".join(TRANSFORM_KEYS)
    )


def _written(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _network(value: Any, place: str, folder: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise SettingError(f"{place}: network", value, "a text, such as ResNet18_32x32")
    return _beginning_at(value, folder)


def _beginning_at(spec: str, folder: str) -> str:
    """``file.py:function`` with the file's whole path; other specs as they are."""
    where, colon, function = spec.rpartition(":")
    return f"{_absolute(where, folder)}:{function}" if colon and where.lower().endswith(".py") else spec


def _absolute(path: str, folder: str) -> str:
    return os.path.normpath(os.path.join(folder, os.path.expanduser(path)))


@dataclass(frozen=True)
class _Sets:
    """Reads sections of images."""

    folder: str

    def named(self, content: Any, place: str, known: bool = False) -> dict[str, ImageSet]:
        if not isinstance(content, Mapping) or not content:
            raise SettingError(place, content, f"at least one set by its name, name: {_SET}")
        for name in content:
            if not isinstance(name, str) or not name or name in RESERVED:
                allowed = f"a text (in quotes, if a number) other than {', '.join(RESERVED)}"
                raise SettingError(f"{place}: a set's name", name, allowed)
        return {name: self.one(value, f"{place}: {name}", known) for name, value in content.items()}

    def one(self, content: Any, place: str, known: bool = False) -> ImageSet:
        if isinstance(content, os.PathLike):
            content = os.fspath(content)
        if isinstance(content, str) and content:
            content = {"images": content}
        if not isinstance(content, Mapping):
            raise SettingError(place, content, _SET)
        found = _section(
            content, place, ("images", "labels", "root") if known else ("images", "root"), ("images",)
        )
        for key, value in found.items():
            if not isinstance(value, str | os.PathLike) or not os.fspath(value):
                raise SettingError(f"{place}: {key}", value, "a path")
        paths = {key: _absolute(os.fspath(value), self.folder) for key, value in found.items()}
        for key, path in paths.items():
            if found[key] != FOLDERS and not os.path.exists(path):
                raise SettingError(
                    f"{place}: {key}", found[key], f"something that exists; there is no {path!r}"
                )
        labels = FOLDERS if known and os.path.isdir(paths["images"]) else None
        if "labels" in found:
            labels = FOLDERS if found["labels"] == FOLDERS else paths["labels"]
        return ImageSet(place, paths["images"], labels, paths.get("root"))

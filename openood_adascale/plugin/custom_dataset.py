"""Custom datasets in OpenOOD's ``Evaluator``: descriptions, images, loaders, names.

``OPENOOD_ADASCALE_DATASETS`` lists YAML files, separated as paths are;
:func:`~openood_adascale.plugin.registration.register_dataset` adds others. This module imports no OpenOOD, as processes
that read images import it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

import yaml
from torch.utils import data

from ..data.decoding import read_image
from ..data.files import FOLDERS, ImageFiles, apply_transform, check_listed, find_images
from ..data.labels import with_classes
from ..detectors.settings import read_yaml
from ..errors import SettingError
from ..evaluation.benchmark import RESERVED
from ..models.transforms import ALLOWED, Transform, transform_for
from ..models.transforms import KEYS as TRANSFORM_KEYS
from .import_hook import DATASETS_VARIABLE, Changes, say

_KEYS = ("name", "classes", "preprocessing", "id", "csid", "ood")
_SET = "a folder, an image list (.txt) or a CSV, or a section with images:"


class Classes(NamedTuple):
    """Classes of a network."""

    total: int
    names: tuple[str, ...] = ()
    """Names in the order of the network's outputs, if given."""


class ImageSet(NamedTuple):
    """Images of one kind."""

    place: str
    """File and keys, for errors."""
    classes: Classes | None
    """Classes of ID images (None for OOD images)."""
    images: str
    labels: str | None = None
    """``folders`` or a CSV (None for lists, which have labels, and for OOD images)."""
    root: str | None = None
    """Directory that a list's paths begin at."""

    def find(self) -> ImageFiles:
        """Return the present files; all labels of OOD images are −1.

        Labels of folders are matched to the classes by name, those of lists are class numbers.

        Raises:
            SettingError: No images, a missing file, a folder that is not a class, or a missing or wrong label.
        """
        try:
            files = find_images(self.images, self.labels, self.root)
            if self.classes is None:
                files = ImageFiles(files.paths)
            else:
                files = with_classes(files, *self.classes, "labels", unlabelled=False)
            if not os.path.isdir(self.images):  # files found in a folder exist
                check_listed(files)
            return files
        except SettingError as error:
            raise error.within(self.place) from error


@dataclass(frozen=True)
class CustomDataset:
    """Content of a description."""

    place: str
    """The YAML file, for errors."""
    name: str
    classes: Classes
    preprocessing: str | Transform
    sets: dict[str, Any]
    """:class:`ImageSet` by split and name, as the YAML file has them: ``sets["ood"]["near"][NAME]``."""

    @property
    def is_preset(self) -> bool:
        """True if the preprocessing is the name of one of OpenOOD's."""
        spec = self.preprocessing
        return isinstance(spec, str) and ":" not in spec and "=" not in spec

    @cached_property
    def transform(self) -> Transform:
        """The transform, always the same object.

        Raises:
            SettingError: It cannot be used.
        """
        place = f"{self.place}: preprocessing"
        if self.is_preset:
            from openood.evaluation_api import preprocessor as openoods

            presets = openoods.default_preprocessing_dict
            if self.preprocessing not in presets:
                expected = f"one of OpenOOD's presets ({', '.join(presets)}), {ALLOWED}"
                raise SettingError(place, self.preprocessing, expected)
            found: Transform = openoods.get_default_preprocessor(self.preprocessing)
            return found
        try:
            return transform_for("", None, None, self.preprocessing)[0]
        except SettingError as error:
            raise SettingError(place, error.value, error.allowed) from error

    def check_images(self) -> None:
        """Check all images.

        Raises:
            SettingError: As :meth:`ImageSet.find`.
        """
        _each(self.sets, lambda name, images: images.find())

    def loaders(self, transform: Transform, standard: Transform, **options: Any) -> dict[str, Any]:
        """Return the loaders that OpenOOD's ``get_id_ood_dataloader`` returns.

        Args:
            transform: Preprocessing of ``data``.
            standard: Preprocessing of ``data_aux``.
            options: Arguments of PyTorch's ``DataLoader``.

        Raises:
            SettingError: As :meth:`ImageSet.find`.
        """

        def loader(name: str, images: ImageSet) -> Any:
            files = images.find().with_transform(transform)
            return data.DataLoader(CustomImages(f"{self.name}_{name}", files, standard), **options)

        def missing(split: str) -> Callable[[str], Exception]:
            expected = "images, which this postprocessor needs"
            return lambda key: SettingError(f"{self.place}: {split}: {key}", None, expected)

        found = _each(self.sets, loader)
        return {**found, **{split: RequiredLoaders(found[split], missing(split)) for split in ("id", "ood")}}


def _each(sets: Mapping[str, Any], function: Callable[[str, ImageSet], Any]) -> dict[str, Any]:
    """Return the same nested dicts with ``function(name, images)`` in place of each image set."""
    return {
        name: _each(inner, function) if isinstance(inner, Mapping) else function(name, inner)
        for name, inner in sets.items()
    }


class RequiredLoaders(dict[str, Any]):
    """Loaders by name; a missing one raises an error when a method asks for it.

    Args:
        loaders: The loaders, or an error in place of one that cannot be used.
        missing: Returns the error for a missing name.
    """

    def __init__(self, loaders: Mapping[str, Any], missing: Callable[[str], Exception]) -> None:
        super().__init__(loaders)
        self._error = missing

    def __getitem__(self, key: str) -> Any:
        found = super().__getitem__(key)
        if isinstance(found, Exception):
            raise found
        return found

    def __missing__(self, key: str) -> Any:
        raise self._error(key)


class CustomImages(data.Dataset[dict[str, Any]]):
    """Image files as OpenOOD's datasets yield them: dicts with ``data``, ``data_aux``, ``label`` and ``image_name``.

    Args:
        name: Name of the set.
        files: Files, with the transform of ``data``.
        standard: Transform of ``data_aux``; the same object is applied once for both.
    """

    def __init__(self, name: str, files: ImageFiles, standard: Transform | None) -> None:
        self.name = name
        self.files = files
        self._standard = standard

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an image.

        Raises:
            ImageError: It cannot be read, or a transform fails.
        """
        place = int(index)  # samplers may yield tensors
        path = self.files.paths[place]
        image = read_image(path)
        first = apply_transform(image, self.files.transform, path)
        same = self._standard is self.files.transform
        return {
            "image_name": path,
            "data": first,
            "data_aux": first if same else apply_transform(image, self._standard, path),
            "label": self.files.labels[place],
            "index": place,
        }


# Reading a description.


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML itself drops the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge":
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    problem = f"the key {key!r} for the second time"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen.append(key)
        return super().construct_mapping(node, deep)


def read_description(path: str | os.PathLike[str]) -> CustomDataset:
    """Return the dataset that a YAML file describes; its relative paths begin at its own directory.

    Raises:
        SettingError: The file cannot be read, or has an invalid value; names file, key, value and allowed values.
    """
    name = os.path.expanduser(os.fspath(path))
    try:
        with open(name, encoding="utf-8-sig") as file:
            content = read_yaml(file.read(), _Loader)
    except (OSError, ValueError) as error:  # not text, or not a path
        why = getattr(error, "strerror", None) or str(error)
        raise SettingError("dataset", name, f"a readable YAML file ({why})") from error
    except yaml.YAMLError as error:
        raise SettingError("dataset", name, f"valid YAML ({' '.join(str(error).split())})") from error
    return parse_description(content, name, os.path.dirname(os.path.abspath(name)))


def parse_description(content: Any, place: str, folder: str) -> CustomDataset:
    """Return the dataset that a YAML file's content describes.

    Args:
        content: Dicts, lists, texts and numbers.
        place: Name of the file, for errors.
        folder: Directory that relative paths begin at.

    Raises:
        SettingError: As :func:`read_description`.
    """
    found = _section(content, place, _KEYS, ("name", "classes", "preprocessing", "id", "ood"))
    name = found["name"]
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
        expected = (
            "a text of letters, digits and . _ + -, the first a letter or digit (in quotes, if a number)"
        )
        raise SettingError(f"{place}: name", name, expected)
    classes = _classes(found["classes"], f"{place}: classes")
    known = _section(found["id"], f"{place}: id", ("train", "val", "test"), ("test",))
    ood = _section(found["ood"], f"{place}: ood", ("val", "near", "far"), ("near", "far"))
    sets: dict[str, Any] = {
        "id": {key: _one_set(value, f"{place}: id: {key}", folder, classes) for key, value in known.items()},
        "csid": _named_sets(found["csid"], f"{place}: csid", folder, classes) if "csid" in found else {},
        "ood": {side: _named_sets(ood[side], f"{place}: ood: {side}", folder) for side in ("near", "far")},
    }
    for both in sets["ood"]["near"].keys() & sets["ood"]["far"].keys():
        raise SettingError(f"{place}: ood: far: a set's name", both, "a name that no near set has")
    if "val" in ood:
        sets["ood"]["val"] = _one_set(ood["val"], f"{place}: ood: val", folder)
    preprocessing = _preprocessing(found["preprocessing"], f"{place}: preprocessing", folder)
    return CustomDataset(place, name, classes, preprocessing, sets)


def _section(content: Any, place: str, keys: tuple[str, ...], required: tuple[str, ...]) -> dict[str, Any]:
    allowed = ", ".join(keys)
    if not isinstance(content, Mapping):
        raise SettingError(place, content, f"a section with {allowed}")
    for key, value in content.items():
        if key not in keys:
            raise SettingError(f"{place}: {key}", value, f"one of the keys {allowed}")
        if value is None:
            raise SettingError(f"{place}: {key}", value, "a value, or no line for it")
    for key in required:
        if key not in content:
            raise SettingError(f"{place}: {key}", None, f"a value; {', '.join(required)} are required")
    return dict(content)


def _classes(value: Any, place: str) -> Classes:
    if type(value) is int and value >= 2:
        return Classes(value)
    if isinstance(value, list | tuple) and len(value) >= 2:
        # YAML turns folders named 0, 1, … into numbers.
        names = [str(name) if type(name) is int else name for name in value]
        if all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names):
            return Classes(len(names), tuple(names))
    expected = "their number, from 2 on, or a list of different names (yes, no, on, off and dates in quotes)"
    raise SettingError(place, value, expected)


def _preprocessing(value: Any, place: str, folder: str) -> str | Transform:
    if isinstance(value, Mapping):
        _section(value, place, TRANSFORM_KEYS, ())
        written = {k: "/".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in value.items()}
        return ",".join(f"{key}={part}" for key, part in written.items())
    if isinstance(value, str) and value:
        file, colon, function = value.rpartition(":")
        own = colon and file.lower().endswith(".py")
        return f"{_absolute(file, folder)}:{function}" if own else value
    if callable(value):
        return value
    raise SettingError(place, value, "a text, or a section with " + ", ".join(TRANSFORM_KEYS))


def _named_sets(content: Any, place: str, folder: str, classes: Classes | None = None) -> dict[str, ImageSet]:
    if not isinstance(content, Mapping) or not content:
        raise SettingError(place, content, f"at least one set by its name, name: {_SET}")
    for name in content:
        if not isinstance(name, str) or not name or name in RESERVED:
            expected = f"a text (in quotes, if a number) other than {', '.join(RESERVED)}"
            raise SettingError(f"{place}: a set's name", name, expected)
    return {name: _one_set(value, f"{place}: {name}", folder, classes) for name, value in content.items()}


def _one_set(content: Any, place: str, folder: str, classes: Classes | None = None) -> ImageSet:
    if isinstance(content, str | os.PathLike) and os.fspath(content):
        content = {"images": os.fspath(content)}
    if not isinstance(content, Mapping):
        raise SettingError(place, content, _SET)
    keys = ("images", "labels", "root") if classes else ("images", "root")
    paths: dict[str, str] = {}
    for key, value in _section(content, place, keys, ("images",)).items():
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise SettingError(f"{place}: {key}", value, "a path")
        folders = key == "labels" and value == FOLDERS
        paths[key] = FOLDERS if folders else _absolute(os.fspath(value), folder)
        if not folders and not os.path.exists(paths[key]):
            raise SettingError(f"{place}: {key}", value, f"an existing path; there is no {paths[key]!r}")
    if classes and os.path.isdir(paths["images"]):
        paths.setdefault("labels", FOLDERS)
    return ImageSet(place, classes, **paths)


def _absolute(path: str, folder: str) -> str:
    return os.path.normpath(os.path.join(folder, os.path.expanduser(path)))


# Names in OpenOOD.


def normalization_of(transform: Any, name: str) -> list[list[float]]:
    """Return mean and standard deviation of a transform that shows them, else 0.5 for both, which is said once.

    torchvision's presets and transforms that end in ``Normalize`` show them.

    Args:
        transform: The transform.
        name: Name of the dataset, for the line.
    """
    transform = getattr(transform, "transform", transform)  # of OpenOOD's presets
    steps = getattr(transform, "transforms", None)
    last = steps[-1] if isinstance(steps, list) and steps else transform
    try:
        return [[float(number) for number in numbers] for numbers in (last.mean, last.std)]
    except (AttributeError, TypeError, ValueError):
        say(
            f"{name}: its preprocessing shows no mean and std; OpenOOD's odin, iodin and godin take 0.5 for both"
        )
        return [[0.5] * 3, [0.5] * 3]


class Datasets:
    """Custom datasets by name, with the functions that OpenOOD's ``Evaluator`` calls for a dataset."""

    def __init__(self) -> None:
        self._sets: dict[str, CustomDataset] = {}
        self._changes = Changes()
        self._entered: set[str] = set()
        """Names that are in OpenOOD's tables because of this class."""
        self._read = ""

    def __contains__(self, name: object) -> bool:
        return name in self._sets

    def add(self, description: str | os.PathLike[str] | Mapping[str, Any]) -> CustomDataset:
        """Add a dataset, in place of an earlier custom one of that name.

        Raises:
            SettingError: An invalid description, missing images, or a name that OpenOOD uses.
        """
        if isinstance(description, Mapping):
            dataset = parse_description(description, "dataset", os.getcwd())
        else:
            dataset = read_description(description)
        dataset.check_images()
        evaluator = sys.modules.get("openood.evaluation_api.evaluator")
        if evaluator is not None and "DATA_INFO" in vars(evaluator):
            self._tables(
                dataset, evaluator
            )  # raises if the name is OpenOOD's, or the preprocessing cannot be used
        elif not dataset.is_preset:
            _ = dataset.transform  # raises if it cannot be used
        self._sets[dataset.name] = dataset
        return dataset

    def clear(self) -> None:
        """Forget all datasets."""
        self._sets.clear()
        self._entered.clear()
        self._changes.undo()
        self._read = ""

    def prepare(self, name: Any, evaluator: ModuleType) -> None:
        """Make OpenOOD's tables know a custom dataset; other names pass.

        Args:
            name: ``id_name`` of the ``Evaluator``.
            evaluator: Its module.

        Raises:
            SettingError: The dataset, or a file in ``OPENOOD_ADASCALE_DATASETS``, cannot be used.
        """
        self._read_variable()
        if name in self._sets:
            entries = self._tables(self._sets[name], evaluator)
            self._entered.add(name)
            for table, value in entries:
                if value is not None and table.get(name) != value:
                    self._changes.set(table, name, value)

    def require_csid(self, name: Any) -> None:
        """Check that a custom dataset has covariate-shifted images.

        Raises:
            SettingError: It has none.
        """
        dataset = self._sets.get(name)
        if dataset is not None and not dataset.sets["csid"]:
            expected = "at least one set, which fsood=True (--fsood) and eval_acc('csid') need"
            raise SettingError(f"{dataset.place}: csid", None, expected)

    # The Evaluator's functions.

    def get_default_preprocessor(self, data_name: str, att: bool = False) -> Transform:
        """Return the transform of a dataset."""
        if att:
            raise SettingError("att", att, f"False for {data_name}: OpenOOD attacks its own datasets only")
        return self._sets[data_name].transform

    def data_setup(self, data_root: str, id_data_name: str) -> None:
        """Download nothing."""

    def get_id_ood_dataloader(
        self, id_name: str, data_root: str, preprocessor: Transform, loader_kwargs: Mapping[str, Any] = {}
    ) -> dict[str, Any]:
        """Return the loaders of a dataset."""
        dataset = self._sets[id_name]
        return dataset.loaders(preprocessor, dataset.transform, **loader_kwargs)

    def _read_variable(self) -> None:
        value = os.environ.get(DATASETS_VARIABLE, "")
        if value == self._read:
            return
        found: dict[str, CustomDataset] = {}
        try:
            for path in filter(str.strip, value.split(os.pathsep)):
                dataset = read_description(path.strip())
                if dataset.name in found:
                    expected = f"another name; {found[dataset.name].place} has it"
                    raise SettingError(f"{dataset.place}: name", dataset.name, expected)
                found[dataset.name] = dataset
        except SettingError as error:
            raise error.within(DATASETS_VARIABLE) from error
        self._sets = {**found, **self._sets}  # those registered in Python were chosen later
        self._read = value

    def _tables(self, dataset: CustomDataset, evaluator: ModuleType) -> list[tuple[dict[str, Any], Any]]:
        """Return OpenOOD's tables by ID dataset, with the dataset's entries (None: no entry).

        Raises:
            SettingError: OpenOOD uses the name.
        """
        classes, normalization = dataset.classes.total, normalization_of(dataset.transform, dataset.name)
        found = [
            (vars(sys.modules[module])[table], value)
            for module, table, value in (
                (evaluator.__name__, "DATA_INFO", {"num_classes": classes}),
                ("openood.postprocessors.info", "num_classes_dict", classes),
                ("openood.preprocessors.transform", "normalization_dict", normalization),
                ("openood.evaluation_api.preprocessor", "default_preprocessing_dict", None),
            )
        ]
        for table, _ in found:
            if dataset.name in table and dataset.name not in self._entered:
                expected = f"a name that OpenOOD does not use; it has {', '.join(table)}"
                raise SettingError(f"{dataset.place}: name", dataset.name, expected)
        return found


DATASETS = Datasets()
"""Custom datasets of this process."""

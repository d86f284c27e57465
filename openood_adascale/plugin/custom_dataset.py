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
from types import ModuleType
from typing import Any

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
from .import_hook import DATASETS_VARIABLE, LOCK, Changes, say

KEYS = ("name", "classes", "preprocessing", "id", "csid", "ood")
SPLITS = ("train", "val", "test")
_SET = "a folder, an image list (.txt) or a CSV, or a section with images:"


# Descriptions.


@dataclass(frozen=True)
class Classes:
    """Classes of a network."""

    count: int
    names: tuple[str, ...] = ()
    """Names in the order of the network's outputs, if given."""

    def number(self, files: ImageFiles) -> ImageFiles:
        """Return the images with the numbers of these classes: of folders by name, of lists as they are.

        Raises:
            SettingError: A folder is not a class, a class has no folder and no names are given, or a label is missing or out
                of range.
        """
        found = with_classes(files, self.count, self.names, "labels", unlabelled=False)
        return ImageFiles(found.paths, found.labels)


@dataclass(frozen=True)
class ImageSet:
    """Images of one kind."""

    place: str
    """File and keys, for errors."""
    images: str
    labels: str | None = None
    """``folders`` or a CSV (None for lists, which have labels, and for OOD images)."""
    root: str | None = None
    """Directory that a list's paths begin at."""

    def find(self, classes: Classes | None) -> ImageFiles:
        """Return the present files; without ``classes`` (OOD images) all labels are −1.

        Raises:
            SettingError: No images, a missing file, or a missing or wrong label.
        """
        try:
            files = find_images(self.images, self.labels, self.root)
            files = ImageFiles(files.paths) if classes is None else classes.number(files)
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
    id_sets: Mapping[str, ImageSet]
    """ID images by ``train``, ``val`` and ``test``; the first two are optional."""
    csid: Mapping[str, ImageSet]
    """Covariate-shifted ID images."""
    ood_val: ImageSet | None
    near: Mapping[str, ImageSet]
    far: Mapping[str, ImageSet]

    def check_images(self) -> None:
        """Check all images.

        Raises:
            SettingError: As :meth:`ImageSet.find`.
        """
        for images in (*self.id_sets.values(), *self.csid.values()):
            images.find(self.classes)
        for images in (*([self.ood_val] if self.ood_val else []), *self.near.values(), *self.far.values()):
            images.find(None)

    def loaders(self, transform: Transform, standard: Transform, **options: Any) -> dict[str, Any]:
        """Return the loaders that OpenOOD's ``get_id_ood_dataloader`` returns.

        Args:
            transform: Preprocessing of ``data``.
            standard: Preprocessing of ``data_aux``.
            options: Arguments of PyTorch's ``DataLoader``.

        Raises:
            SettingError: As :meth:`ImageSet.find`.
        """

        def loader(name: str, images: ImageSet, classes: Classes | None = None) -> data.DataLoader[Any]:
            files = images.find(classes).with_transform(transform)
            return data.DataLoader(CustomImages(f"{self.name}_{name}", files, standard), **options)

        ood: dict[str, Any] = {
            split: {name: loader(f"ood_{name}", images) for name, images in sets.items()}
            for split, sets in (("near", self.near), ("far", self.far))
        }
        if self.ood_val is not None:
            ood["val"] = loader("ood_val", self.ood_val)
        id_loaders = {split: loader(split, images, self.classes) for split, images in self.id_sets.items()}

        def missing(section: str) -> Callable[[str], SettingError]:
            expected = "images, which this postprocessor needs"
            return lambda key: SettingError(f"{self.place}: {section}: {key}", None, expected)

        return {
            "id": RequiredLoaders(id_loaders, missing("id")),
            "csid": {name: loader(f"csid_{name}", one, self.classes) for name, one in self.csid.items()},
            "ood": RequiredLoaders(ood, missing("ood")),
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

    def __copy__(self) -> RequiredLoaders:
        return RequiredLoaders(self, self._error)

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
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
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
    reader = _Reader(folder)
    found = _section(content, place, KEYS, ("name", "classes", "preprocessing", "id", "ood"))
    id_sets = _section(found["id"], f"{place}: id", SPLITS, ("test",))
    ood = _section(found["ood"], f"{place}: ood", ("val", "near", "far"), ("near", "far"))
    near = reader.named_sets(ood["near"], f"{place}: ood: near")
    far = reader.named_sets(ood["far"], f"{place}: ood: far")
    for name in near.keys() & far.keys():
        raise SettingError(f"{place}: ood: far: a set's name", name, "a name that no near set has")
    name = found["name"]
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
        expected = (
            "a text of letters, digits and . _ + -, the first a letter or digit (in quotes, if a number)"
        )
        raise SettingError(f"{place}: name", name, expected)
    return CustomDataset(
        place,
        name,
        _classes(found["classes"], place),
        reader.preprocessing(found["preprocessing"], place),
        {key: reader.one_set(value, f"{place}: id: {key}", True) for key, value in id_sets.items()},
        reader.named_sets(found["csid"], f"{place}: csid", True) if "csid" in found else {},
        reader.one_set(ood["val"], f"{place}: ood: val") if "val" in ood else None,
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
    raise SettingError(f"{place}: classes", value, expected)


@dataclass(frozen=True)
class _Reader:
    """Reads values whose relative paths begin at ``folder``."""

    folder: str

    def preprocessing(self, value: Any, place: str) -> str | Transform:
        if isinstance(value, Mapping):
            _section(value, f"{place}: preprocessing", TRANSFORM_KEYS, ())
            written = {
                k: "/".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in value.items()
            }
            return ",".join(f"{key}={part}" for key, part in written.items())
        if isinstance(value, str) and value:
            file, colon, function = value.rpartition(":")
            own = colon and file.lower().endswith(".py")
            return f"{self._absolute(file)}:{function}" if own else value
        if callable(value):
            return value
        expected = "a text, or a section with " + ", ".join(TRANSFORM_KEYS)
        raise SettingError(f"{place}: preprocessing", value, expected)

    def named_sets(self, content: Any, place: str, labelled: bool = False) -> dict[str, ImageSet]:
        if not isinstance(content, Mapping) or not content:
            raise SettingError(place, content, f"at least one set by its name, name: {_SET}")
        for name in content:
            if not isinstance(name, str) or not name or name in RESERVED:
                expected = f"a text (in quotes, if a number) other than {', '.join(RESERVED)}"
                raise SettingError(f"{place}: a set's name", name, expected)
        return {name: self.one_set(value, f"{place}: {name}", labelled) for name, value in content.items()}

    def one_set(self, content: Any, place: str, labelled: bool = False) -> ImageSet:
        if isinstance(content, str | os.PathLike) and os.fspath(content):
            content = {"images": os.fspath(content)}
        if not isinstance(content, Mapping):
            raise SettingError(place, content, _SET)
        keys = ("images", "labels", "root") if labelled else ("images", "root")
        found = _section(content, place, keys, ("images",))
        for key, value in found.items():
            if not isinstance(value, str | os.PathLike) or not os.fspath(value):
                raise SettingError(f"{place}: {key}", value, "a path")
        paths = {key: self._absolute(os.fspath(value)) for key, value in found.items()}
        for key, path in paths.items():
            if found[key] != FOLDERS and not os.path.exists(path):
                raise SettingError(f"{place}: {key}", found[key], f"an existing path; there is no {path!r}")
        labels = FOLDERS if labelled and os.path.isdir(paths["images"]) else None
        if "labels" in found:
            labels = FOLDERS if found["labels"] == FOLDERS else paths["labels"]
        return ImageSet(place, paths["images"], labels, paths.get("root"))

    def _absolute(self, path: str) -> str:
        return os.path.normpath(os.path.join(self.folder, os.path.expanduser(path)))


# Names in OpenOOD.


def normalization_of(transform: Any) -> list[list[float]] | None:
    """Return mean and standard deviation of torchvision's presets and of what ends in a ``Normalize`` (else None)."""
    steps = getattr(transform, "transforms", None)
    last = steps[-1] if isinstance(steps, list) and steps else transform
    try:
        return [[float(number) for number in numbers] for numbers in (last.mean, last.std)]
    except (AttributeError, TypeError, ValueError):
        return None


class Datasets:
    """Custom datasets by name, with the functions that OpenOOD's ``Evaluator`` calls for a dataset."""

    def __init__(self) -> None:
        self._sets: dict[str, CustomDataset] = {}
        self._entries: dict[str, Changes] = {}
        self._transforms: dict[str, tuple[Transform, list[list[float]] | None]] = {}
        self._errors: list[SettingError] = []  # of files that the variable names
        self._read: str | None = None

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
        loaded = evaluator is not None and "DATA_INFO" in vars(evaluator)
        if loaded or not _is_preset(dataset.preprocessing):
            self._transform_of(dataset)
        if evaluator is not None and loaded:
            self._tables(dataset, evaluator)  # raises if the name is OpenOOD's
        with LOCK:
            self._forget(dataset.name)
            self._sets[dataset.name] = dataset
        return dataset

    def clear(self) -> None:
        """Forget all datasets. The caller holds the plugin's lock."""
        for name in [*self._sets]:
            self._forget(name)
        self._errors.clear()
        self._read = None

    def prepare(self, name: Any, evaluator: ModuleType) -> None:
        """Make OpenOOD's tables know a custom dataset; other names pass.

        Args:
            name: ``id_name`` of the ``Evaluator``.
            evaluator: Its module.

        Raises:
            SettingError: The dataset cannot be used; or there is none of this name, and a file in
                ``OPENOOD_ADASCALE_DATASETS`` cannot be read.
        """
        self._read_variable()
        if not isinstance(name, str):
            return
        dataset = self._sets.get(name)
        if dataset is None:
            if self._errors and name not in vars(evaluator)["DATA_INFO"]:
                raise next((error for error in self._errors if error.value == name), self._errors[0])
            return
        entries = self._tables(dataset, evaluator)
        with LOCK:
            if name not in self._entries:
                changes = self._entries[name] = Changes()
                for table, value in entries:
                    if value is not None:
                        changes.set(table, name, value)

    def require_csid(self, name: Any) -> None:
        """Check that a custom dataset has covariate-shifted images.

        Raises:
            SettingError: It has none.
        """
        dataset = self._sets.get(name) if isinstance(name, str) else None
        if dataset is not None and not dataset.csid:
            expected = "at least one set, which fsood=True (--fsood) and eval_acc('csid') need"
            raise SettingError(f"{dataset.place}: csid", None, expected)

    # The Evaluator's functions.

    def get_default_preprocessor(self, data_name: str, att: bool = False) -> Transform:
        """Return the transform of a dataset."""
        if att:
            raise SettingError("att", att, f"False for {data_name}: OpenOOD attacks its own datasets only")
        return self._transform_of(self._sets[data_name])[0]

    def data_setup(self, data_root: str, id_data_name: str) -> None:
        """Download nothing."""

    def get_id_ood_dataloader(
        self, id_name: str, data_root: str, preprocessor: Transform, loader_kwargs: Mapping[str, Any] = {}
    ) -> dict[str, Any]:
        """Return the loaders of a dataset."""
        dataset = self._sets[id_name]
        return dataset.loaders(preprocessor, self._transform_of(dataset)[0], **loader_kwargs)

    def _forget(self, name: str) -> None:
        self._sets.pop(name, None)
        self._transforms.pop(name, None)
        if name in self._entries:
            self._entries.pop(name).undo()

    def _read_variable(self) -> None:
        value = os.environ.get(DATASETS_VARIABLE, "")
        with LOCK:
            if self._read == value:
                return
            self._read = value
        found: dict[str, list[CustomDataset]] = {}
        for path in filter(str.strip, value.split(os.pathsep)):
            try:
                dataset = read_description(path.strip())
                found.setdefault(dataset.name, []).append(dataset)
            except SettingError as error:
                self._errors.append(error.within(DATASETS_VARIABLE))
        for name, (first, *others) in found.items():
            for dataset in others:
                place = f"{DATASETS_VARIABLE}: {dataset.place}: name"
                self._errors.append(SettingError(place, name, f"another name; {first.place} has it"))
            if not others:
                with LOCK:  # datasets registered in Python were chosen later than the variable
                    self._sets.setdefault(name, first)
        for problem in self._errors:
            say(str(problem))

    def _tables(self, dataset: CustomDataset, evaluator: ModuleType) -> list[tuple[dict[str, Any], Any]]:
        """Return OpenOOD's tables by ID dataset, with the dataset's entries (None: no entry).

        Raises:
            SettingError: OpenOOD uses the name.
        """
        found = [
            (vars(sys.modules[module])[table], value)
            for module, table, value in (
                (evaluator.__name__, "DATA_INFO", {"num_classes": dataset.classes.count}),
                ("openood.postprocessors.info", "num_classes_dict", dataset.classes.count),
                ("openood.preprocessors.transform", "normalization_dict", self._transform_of(dataset)[1]),
                ("openood.evaluation_api.preprocessor", "default_preprocessing_dict", None),
            )
        ]
        for table, _ in found:
            if dataset.name in table and dataset.name not in self._entries:
                expected = f"a name that OpenOOD does not use; it has {', '.join(table)}"
                raise SettingError(f"{dataset.place}: name", dataset.name, expected)
        return found

    def _transform_of(self, dataset: CustomDataset) -> tuple[Transform, list[list[float]] | None]:
        """Return the transform, and mean and standard deviation if it shows them.

        Raises:
            SettingError: It cannot be used.
        """
        known = self._transforms.get(dataset.name)
        if known is not None and self._sets.get(dataset.name) is dataset:
            return known
        found = _preprocessing(dataset.preprocessing, dataset.place)
        if self._sets.get(dataset.name) is dataset:
            self._transforms[dataset.name] = found
        if found[1] is None:
            say(
                f"{dataset.name}: its preprocessing shows no mean and std; OpenOOD's odin and godin take 0.5 for both"
            )
        return found


def _is_preset(spec: str | Transform) -> bool:
    """Return True for a name of OpenOOD's presets."""
    return isinstance(spec, str) and ":" not in spec and "=" not in spec


def _preprocessing(spec: str | Transform, place: str) -> tuple[Transform, list[list[float]] | None]:
    if isinstance(spec, str) and _is_preset(spec):
        from openood.evaluation_api import preprocessor as openoods

        presets = openoods.default_preprocessing_dict
        if spec not in presets:
            expected = f"one of OpenOOD's presets ({', '.join(presets)}), {ALLOWED}"
            raise SettingError(f"{place}: preprocessing", spec, expected)
        return openoods.get_default_preprocessor(spec), presets[spec]["normalization"]
    try:
        transform, _ = transform_for("", None, None, spec)
    except SettingError as error:
        raise SettingError(f"{place}: preprocessing", error.value, error.allowed) from error
    return transform, normalization_of(transform)


DATASETS = Datasets()
"""Custom datasets of this process."""

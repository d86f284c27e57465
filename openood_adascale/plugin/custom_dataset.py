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
from .import_hook import DATASETS_VARIABLE, LOCK, Changes, say

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
    images: str
    labels: str | None = None
    """``folders`` or a CSV (None for lists, which have labels, and for OOD images)."""
    root: str | None = None
    """Directory that a list's paths begin at."""

    def find(self, classes: Classes | None) -> ImageFiles:
        """Return the present files; without ``classes`` (OOD images) all labels are −1.

        Labels of folders are matched to the classes by name, those of lists are class numbers.

        Raises:
            SettingError: No images, a missing file, a folder that is not a class, or a missing or wrong label.
        """
        try:
            files = find_images(self.images, self.labels, self.root)
            if classes is not None:
                files = with_classes(files, *classes, "labels", unlabelled=False)
            files = ImageFiles(files.paths, None if classes is None else files.labels)
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

    @cached_property
    def normalization(self) -> list[list[float]] | None:
        """Mean and standard deviation of the preprocessing, if it shows them."""
        if self.is_preset:
            from openood.evaluation_api.preprocessor import default_preprocessing_dict as presets

            _ = self.transform  # raises for an unknown name
            return presets[self.preprocessing]["normalization"]
        if (found := normalization_of(self.transform)) is None:
            say(
                f"{self.name}: its preprocessing shows no mean and std; OpenOOD's odin and godin take 0.5 for both"
            )
        return found

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

        def loaders(
            sets: Mapping[str, ImageSet], classes: Classes | None = None, prefix: str = ""
        ) -> dict[str, Any]:
            found = {}
            for name, one in sets.items():
                files = one.find(classes).with_transform(transform)
                images = CustomImages(f"{self.name}_{prefix}{name}", files, standard)
                found[name] = data.DataLoader(images, **options)
            return found

        near, far = (loaders(sets, prefix="ood_") for sets in (self.near, self.far))
        ood = {"near": near, "far": far}
        if self.ood_val is not None:
            ood.update(loaders({"val": self.ood_val}, prefix="ood_"))

        def required(section: str, found: dict[str, Any]) -> RequiredLoaders:
            expected = "images, which this postprocessor needs"
            return RequiredLoaders(
                found, lambda key: SettingError(f"{self.place}: {section}: {key}", None, expected)
            )

        return {
            "id": required("id", loaders(self.id_sets, self.classes)),
            "csid": loaders(self.csid, self.classes, "csid_"),
            "ood": required("ood", ood),
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
    id_sets = _section(found["id"], f"{place}: id", ("train", "val", "test"), ("test",))
    ood = _section(found["ood"], f"{place}: ood", ("val", "near", "far"), ("near", "far"))
    near, far = (_named_sets(ood[split], f"{place}: ood: {split}", folder) for split in ("near", "far"))
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
        _classes(found["classes"], f"{place}: classes"),
        _preprocessing(found["preprocessing"], f"{place}: preprocessing", folder),
        {key: _one_set(value, f"{place}: id: {key}", folder, True) for key, value in id_sets.items()},
        _named_sets(found["csid"], f"{place}: csid", folder, True) if "csid" in found else {},
        _one_set(ood["val"], f"{place}: ood: val", folder) if "val" in ood else None,
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


def _named_sets(content: Any, place: str, folder: str, labelled: bool = False) -> dict[str, ImageSet]:
    if not isinstance(content, Mapping) or not content:
        raise SettingError(place, content, f"at least one set by its name, name: {_SET}")
    for name in content:
        if not isinstance(name, str) or not name or name in RESERVED:
            expected = f"a text (in quotes, if a number) other than {', '.join(RESERVED)}"
            raise SettingError(f"{place}: a set's name", name, expected)
    return {name: _one_set(value, f"{place}: {name}", folder, labelled) for name, value in content.items()}


def _one_set(content: Any, place: str, folder: str, labelled: bool = False) -> ImageSet:
    if isinstance(content, str | os.PathLike) and os.fspath(content):
        content = {"images": os.fspath(content)}
    if not isinstance(content, Mapping):
        raise SettingError(place, content, _SET)
    keys = ("images", "labels", "root") if labelled else ("images", "root")
    paths: dict[str, str] = {}
    for key, value in _section(content, place, keys, ("images",)).items():
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise SettingError(f"{place}: {key}", value, "a path")
        path = paths[key] = _absolute(os.fspath(value), folder)
        if key == "labels" and value == FOLDERS:
            paths[key] = FOLDERS
        elif not os.path.exists(path):
            raise SettingError(f"{place}: {key}", value, f"an existing path; there is no {path!r}")
    if labelled and os.path.isdir(paths["images"]):
        paths.setdefault("labels", FOLDERS)
    return ImageSet(place, **paths)


def _absolute(path: str, folder: str) -> str:
    return os.path.normpath(os.path.join(folder, os.path.expanduser(path)))


# Names in OpenOOD.


def normalization_of(transform: Any) -> list[list[float]] | None:
    """Return mean and standard deviation of torchvision's presets and of transforms ending in ``Normalize`` (else None)."""
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
        if evaluator is not None and "DATA_INFO" in vars(evaluator):
            self._tables(dataset, evaluator)  # raises if the name is OpenOOD's
        elif not dataset.is_preset:
            _ = dataset.transform  # raises if it cannot be used
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
        dataset = self._sets.get(name)
        if dataset is not None and not dataset.csid:
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

    def _forget(self, name: str) -> None:
        self._sets.pop(name, None)
        if name in self._entries:
            self._entries.pop(name).undo()

    def _read_variable(self) -> None:
        value = os.environ.get(DATASETS_VARIABLE, "")
        with LOCK:
            if self._read == value:
                return
            self._read = value
        found: dict[str, CustomDataset] = {}
        for path in filter(str.strip, value.split(os.pathsep)):
            try:
                dataset = read_description(path.strip())
                first = found.setdefault(dataset.name, dataset)
                if first is not dataset:
                    expected = f"another name; {first.place} has it"
                    raise SettingError(f"{dataset.place}: name", dataset.name, expected)
            except SettingError as error:
                self._errors.append(error.within(DATASETS_VARIABLE))
                say(str(self._errors[-1]))
        with LOCK:
            for name, dataset in found.items():
                if not any(error.value == name for error in self._errors):
                    self._sets.setdefault(name, dataset)  # those registered in Python were chosen later

    def _tables(self, dataset: CustomDataset, evaluator: ModuleType) -> list[tuple[dict[str, Any], Any]]:
        """Return OpenOOD's tables by ID dataset, with the dataset's entries (None: no entry).

        Raises:
            SettingError: OpenOOD uses the name.
        """
        classes = dataset.classes.total
        found = [
            (vars(sys.modules[module])[table], value)
            for module, table, value in (
                (evaluator.__name__, "DATA_INFO", {"num_classes": classes}),
                ("openood.postprocessors.info", "num_classes_dict", classes),
                ("openood.preprocessors.transform", "normalization_dict", dataset.normalization),
                ("openood.evaluation_api.preprocessor", "default_preprocessing_dict", None),
            )
        ]
        for table, _ in found:
            if dataset.name in table and dataset.name not in self._entries:
                expected = f"a name that OpenOOD does not use; it has {', '.join(table)}"
                raise SettingError(f"{dataset.place}: name", dataset.name, expected)
        return found


DATASETS = Datasets()
"""Custom datasets of this process."""

"""A detector fitted on folders of images, as a file; and images scored with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from ..detectors.base import Detector
from ..detectors.file import load, notes_of, write
from ..detectors.learning import StreamingDetector
from ..detectors.settings import read_yaml
from ..errors import SettingError
from ..evidence.sharing import using_store
from .folders import FOLDERS, ImageFiles, find_images
from .networks import DEFAULT
from .own_images import detector_of
from .reading import Reading, Say

_REMEMBERED = ("network", "weights", "transform")
_LIBRARIES = ("torchvision:", "timm:")


class Scored(NamedTuple):
    """What a detector says of one image."""

    path: str
    prediction: int
    """The predicted class."""
    name: str
    """What that class is called; nothing where that is not known."""
    score: float
    """Larger is more in-distribution."""
    ood: bool
    """Whether the score is below the threshold."""


def fit_folders(chosen: Mapping[str, Any], say: Say) -> Detector[Any, Any]:
    """Fit a detector on folders of images, or search its settings, and write it to a file.

    Args:
        chosen: as the options of ``openood-adascale fit`` by their names.
        say: is told what happens on the way.

    Raises:
        SettingError: an option that cannot be used.
        ImageError: an image that cannot be read.
        StoreError: the store cannot be used, or has no room.
        DetectorFileError: the file cannot be written.
    """
    reading = Reading(chosen, say)
    network, settings = reading.loaded.network, _settings(chosen.get("set") or ())
    detector = detector_of(chosen["method"], network, chosen, settings)
    known = reading.files("val", chosen["val"], chosen.get("labels"))
    loaders = {"val": reading.loader_over(known)}
    for name in ("train", "ood_val"):
        if chosen.get(name) is not None:
            loaders[name] = reading.loader(name, chosen[name])
    if detector.learns and detector.settings.source not in loaders:
        raise SettingError("--train", None, f"a folder: {detector.settings!r} learns from training images")
    with using_store(chosen.get("store")):
        _fit(detector, loaders, reading, say)
        if detector.validation_scores is None:
            detector.calibrate(loaders["val"], reading.progress)
    classes = known.classes if chosen.get("labels") == FOLDERS else reading.loaded.classes
    write(chosen["out"], detector, {**_remembered(chosen), "classes": classes})
    say(f"{detector!r}; 95 % of {len(known)} validation images score {detector.threshold():.6g} or more")
    return detector


def _fit(detector: Detector[Any, Any], loaders: Mapping[str, Any], reading: Reading, say: Say) -> None:
    learnt_from = loaders.get(detector.settings.source)
    if "ood_val" not in loaders or not detector.default_sweep:
        detector.fit(loaders["val"] if learnt_from is None else learnt_from, reading.progress)
        return
    more = {"learn_loader": learnt_from} if isinstance(detector, StreamingDetector) else {}
    found = detector.search(loaders["val"], loaders["ood_val"], progress=reading.progress, **more)
    best = {name.removesuffix("_list"): None for name in detector.default_sweep}
    told = ", ".join(f"{name} = {getattr(found.settings, name)!r}" for name in best)
    say(f"searched {len(found.table)} candidates: {told}; AUROC {found.auroc:.2f} on the validation images")


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """``k1=2`` and the like, of which the values are read as a yml's."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals) or name in found:
            raise SettingError("--set", word, "NAME=VALUE, such as percentile=[80,85], each name once")
        try:
            found[name] = read_yaml(value)
        except yaml.YAMLError:
            found[name] = value  # which the settings refuse, and say why
    return found


def _remembered(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What the network was loaded by, for whoever scores with the detector; a file's place as it is found from anywhere."""
    found = {name: chosen.get(name) for name in _REMEMBERED}
    if found["weights"] not in (None, DEFAULT):
        found["weights"] = os.path.abspath(found["weights"])
    return found


class Scoring:
    """A detector's file with its network, ready to score images.

    Args:
        file: what :func:`fit_folders` or ``detector.save`` has written.
        chosen: as the options of ``openood-adascale score`` by their names. Where the network is one of torchvision's or
            timm's, the file says which it is and where its weights were; code of one's own is run only if it is named here.
        say: is told what happens on the way.

    Raises:
        DetectorFileError: no such file, damaged, or made for another network.
        SettingError: an option that cannot be used, or one that is needed.
    """

    def __init__(self, file: str, chosen: Mapping[str, Any], say: Say) -> None:
        notes = notes_of(file)
        self._reading = Reading({**chosen, **_network_of(file, notes, chosen)}, say)
        self.detector = load(file, self._reading.loaded.network)
        classes = notes.get("classes") or self._reading.loaded.classes
        self._classes = list(map(str, classes)) if isinstance(classes, list) else []
        self._skips = bool(chosen.get("skip_broken"))

    def scored(self, wheres: Sequence[str], tpr: float = 0.95) -> Iterator[Scored]:
        """Of each image in files, folders and lists, in order.

        Args:
            wheres: as :func:`~.folders.find_images` takes them.
            tpr: what share of the in-distribution validation images is to be kept, within (0, 1].

        Raises:
            SettingError: no image, or another ``tpr``.
            ImageError: an image that cannot be read.
            RuntimeError: the file holds no scores of validation images.
        """
        least = self.detector.threshold(tpr)
        paths = [path for where in wheres for path in find_images(where).paths]
        files = ImageFiles(paths, transform=self._reading.loaded.transform)
        if self._skips:
            files = self._reading.without_broken("images", files)
        left = iter(files.paths)
        loader = self._reading.loader_over(files)
        for predictions, scores, _ in self.detector.predict_batches(loader, self._reading.progress):
            for prediction, score in zip(predictions.tolist(), scores.tolist(), strict=True):
                name = self._classes[prediction] if prediction < len(self._classes) else ""
                yield Scored(next(left), prediction, name, score, score < least)


def _network_of(file: str, notes: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Network, weights and transform: as chosen, and else as noted."""
    found = {name: chosen.get(name) for name in _REMEMBERED}
    noted = {name: notes[name] for name in _REMEMBERED if isinstance(notes.get(name), str)}
    network = noted.get("network", "")
    if found["network"] is None:
        if not network.startswith(_LIBRARIES):
            told = f": {network!r}, which is code, and only run if it is named" if network else ""
            raise SettingError("--network", None, f"the network that {file} was made for{told}")
        found["network"] = network
    if found["network"] != network:  # what belongs to another network need not fit this one
        return found
    if found["weights"] is None and (weights := noted.get("weights")) is not None:
        if weights != DEFAULT and not os.path.isfile(weights):
            raise SettingError("--weights", None, f"where they are now: {file} was made with {weights!r}")
        found["weights"] = weights
    if found["transform"] is None and (transform := noted.get("transform")) is not None:
        if ":" in transform and not transform.startswith(_LIBRARIES):
            told = f"{transform!r}, which is code, and only run if it is named"
            raise SettingError("--transform", None, f"the one that {file} was made with: {told}")
        found["transform"] = transform
    return found

"""The scores that OpenOOD saves per image, and this package's in the same form.

``eval_ood.py --save-score`` pickles a dict of arrays into ``scores/<postprocessor>.pkl``; ``main.py`` writes
one ``scores/<OOD set>.npz`` per set.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ResultError
from ..evaluation.per_image import PerImage, joined, whole
from .files import is_regular, not_regular
from .image_lists import NEEDED, FilesOf, ImageLists
from .names import AVERAGES, canonical_set
from .text import is_name
from .unpickling import NumbersUnpickler, as_array

_NEAR_SETS = frozenset({"cifar10", "cifar100", "tin", "ssb_hard", "ninco", "imagenet_o"})
_LARGEST = 1e300  # beyond it float64 leaves no room to compute with


@dataclass(frozen=True)
class Scores:
    """Confidences of one run, float64, larger = more in-distribution. ``accuracy`` in percent, if known."""

    id: np.ndarray
    near: dict[str, np.ndarray]
    far: dict[str, np.ndarray]
    accuracy: float | None
    images: Mapping[str, PerImage] = field(default_factory=dict)
    """What is known of each image, by ``id`` and the OOD sets' names, in the scores' order."""
    classes: Mapping[int, str] = field(default_factory=dict)
    """Names of the network's classes, where they are known."""
    source: str = ""
    """Which training run's: scores of several methods are of one network only if it is the same."""

    def of(self, name: str) -> np.ndarray | None:
        """Those of ``id`` or of an OOD set; None where it was not scored."""
        return self.id if name == "id" else self.near.get(name, self.far.get(name))


def read_pickle(
    path: str | Path, lists: ImageLists | None = None, dataset: str | None = None
) -> dict[str, Scores]:
    """Read ``scores/<postprocessor>.pkl`` as eval_ood.py saves it: scores per scheme (``ood``, ``fsood``).

    ``fsood``, whose in-distribution images include the covariate-shifted sets, is there only if those were
    inferred. Raises :class:`~openood_adascale.errors.ResultError` for anything that is not such a file.

    Args:
        path: of the pickle.
        lists: OpenOOD's image lists, which tell the files that the scores are of.
        dataset: the known images', where it is known.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            saved: Any = NumbersUnpickler(file).load()
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise ResultError(f"{path}: not a score file that can be read safely: {error}") from error
    try:
        near, far = (dict(saved["ood"][side]) for side in ("near", "far"))
        id_test, csid = saved["id"]["test"], dict(saved["csid"])
        labels = {"id": (saved["id_preds"], saved["id_labels"])}
        labels |= {name: (saved["csid_preds"][name], saved["csid_labels"][name]) for name in csid}
    except (TypeError, ValueError, LookupError) as error:
        raise ResultError(
            f"{path}: not the scores of OpenOOD's Evaluator: {error!r}; expected a dict with 'id', 'csid', "
            "'ood', 'id_preds', 'id_labels', 'csid_preds', 'csid_labels'"
        ) from error
    _check_names(path, {"near": near, "far": far})
    _check_names(path, {"csid": csid})
    if id_test is None:
        return {}
    near, far = ({name: entry for name, entry in side.items() if entry is not None} for side in (near, far))
    id_conf = _confidence(path, "id test", id_test)
    if not (near or far):
        return {}
    near_conf, far_conf = (
        {name: _confidence(path, name, entry) for name, entry in side.items()} for side in (near, far)
    )
    files, classes = _files(path, lists, dataset, id_test, len(id_conf))
    images = {name: _images(name, entry, files) for name, entry in {"id": id_test, **near, **far}.items()}
    accuracy = _accuracy(path, [labels["id"]])
    found = {"ood": Scores(id_conf, near_conf, far_conf, accuracy, images, classes, str(path.parent))}
    if csid and all(entry is not None for entry in csid.values()):
        conf = np.concatenate([id_conf, *(_confidence(path, name, entry) for name, entry in csid.items())])
        shifted = [_images(name, entry, files) for name, entry in csid.items()]
        found["fsood"] = replace(
            found["ood"],
            id=conf,
            accuracy=_accuracy(path, labels.values()),
            images={**images, "id": joined([images["id"], *shifted])},
        )
    return found


def _files(
    path: Path, lists: ImageLists | None, dataset: str | None, id_test: Any, count: int
) -> tuple[FilesOf, dict[int, str]]:
    """How the files of the sets are told, and names of classes."""
    if lists is None:
        return lambda *_: ((), f"{NEEDED} are needed"), {}
    return lists.of_run(dataset, whole(as_array(id_test[2]), count), path.stat().st_mtime)


def _images(name: str, entry: Any, files: FilesOf) -> PerImage:
    """What a set's (prediction, confidence, label) tell beside the confidence."""
    predictions, confidences, labels = map(as_array, entry)
    count = 0 if confidences is None else confidences.size
    of_list, unknown = files(name, whole(labels, count))
    return PerImage(whole(labels, count), whole(predictions, count), of_list, unknown)


def _check_names(path: Path, sides: Mapping[str, Iterable[object]]) -> None:
    """OOD sets need names that tables can have, each once."""
    seen: set[object] = set()
    for side, names in sides.items():
        for name in names:
            if not is_name(name) or name in AVERAGES or name in seen:
                raise ResultError(
                    f"{path}: {side}: the OOD set {reprlib.repr(name)}; expected a name, as text, that no other "
                    "set or average has"
                )
            seen.add(name)


def read_npz(folder: str | Path, near: tuple[str, ...] = ()) -> Scores | None:
    """Read a folder of ``<set>.npz`` that main.py saved, labels -1 marking OOD; None if it has no ID scores.

    ``near`` names the near OOD sets; where it is empty the benchmarks' usual ones are taken.
    """
    inside: list[np.ndarray] = []
    sides: dict[bool, dict[str, np.ndarray]] = {True: {}, False: {}}  # near or not
    hits = total = 0
    near_names = frozenset(map(canonical_set, near)) or _NEAR_SETS
    for path in sorted(Path(folder).glob("*.npz")):
        pred, conf, label = _read_set(path)
        if (label == -1).all():
            sides[canonical_set(path.stem) in near_names][path.stem] = conf
        else:
            inside.append(conf)
            hits, total = hits + int((pred == label).sum()), total + len(label)
    if not inside:
        return None
    return Scores(np.concatenate(inside), sides[True], sides[False], 100 * hits / total)


def _read_set(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(prediction, confidence, label) of an ``npz``, a number per image each."""
    if not is_regular(path):
        raise ResultError(not_regular(path))
    try:
        with np.load(path, allow_pickle=False) as saved:
            pred, conf, label = (saved[key] for key in ("pred", "conf", "label"))
    except Exception as error:  # zipfile, NumPy and zlib each have their own
        raise ResultError(f"{path}: not a score file of main.py's (pred, conf, label): {error}") from error
    conf = _confidence(path, path.stem, [pred, conf, label])
    if not (pred.shape == label.shape == (len(conf),)):
        raise ResultError(
            f"{path}: pred of shape {pred.shape}, label of shape {label.shape}; expected one of each for "
            f"every one of {len(conf)} images"
        )
    _check_names(path, {"scores": [path.stem]})
    return pred, conf, label


def finite(conf: np.ndarray) -> np.ndarray:
    """Confidences as float64 with which pictures can compute: infinities become large numbers."""
    return np.clip(conf.reshape(-1).astype(np.float64), -_LARGEST, _LARGEST)


def _confidence(path: Path, name: str, entry: object) -> np.ndarray:
    """The middle one of (prediction, confidence, label)."""
    conf = as_array(entry[1]) if isinstance(entry, list | tuple) and len(entry) == 3 else None
    if conf is None or conf.dtype.kind not in "biuf" or (conf.size,) != conf.shape[:1]:
        raise ResultError(
            f"{path}: {name}: expected arrays (prediction, confidence, label), a number per image"
        )
    if conf.size == 0 or np.isnan(conf).any():
        raise ResultError(f"{path}: {name}: {np.isnan(conf).sum()} of {conf.size} confidences are NaN")
    return finite(conf)


def _accuracy(path: Path, pairs: Iterable[tuple[object, object]]) -> float | None:
    hits = total = 0
    for pair in pairs:
        if pair[0] is None or pair[1] is None:
            return None
        preds, labels = map(as_array, pair)
        if preds is None or labels is None:
            raise ResultError(f"{path}: predictions and labels are no arrays; expected a number per image")
        if preds.shape != labels.shape or preds.ndim != 1 or not preds.size:
            raise ResultError(f"{path}: predictions of shape {preds.shape} with labels of {labels.shape}")
        hits, total = hits + int((preds == labels).sum()), total + len(labels)
    return 100 * hits / total

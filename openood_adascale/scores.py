"""Read the saved scores of a run without executing anything that a file may hold.

``eval_ood.py --save-score`` pickles a dict of arrays into ``scores/<postprocessor>.pkl``; ``main.py`` writes
one ``scores/<OOD set>.npz`` per set. A pickle is a program: here only the handful of names that such a dict
needs is known, and each stands for code of this module that rebuilds plain numbers. All else is an error.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from sklearn.metrics import auc, roc_curve

from .results import ResultError, canonical_set

_NEAR_SETS = frozenset({"cifar10", "cifar100", "tin", "ssb_hard", "ninco", "imagenet_o"})

_LARGEST = 1e300  # beyond it float64 leaves no room to compute with
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "BoolStorage": "?",
    "ByteStorage": "<u1",
    "CharStorage": "<i1",
    "ShortStorage": "<i2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
}


@dataclass(frozen=True)
class Scores:
    """Confidences of one run, float64, larger = more in-distribution. ``accuracy`` in percent, if known."""

    id: np.ndarray
    near: dict[str, np.ndarray]
    far: dict[str, np.ndarray]
    accuracy: float | None


class _Dtype:
    """Stands for a pickled ``numpy.dtype``: numbers and booleans only."""

    __slots__ = ("value",)

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
            raise pickle.UnpicklingError(
                f"an array of dtype {code!r}; only numbers and booleans are saved there"
            )
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.value = self.value.newbyteorder("<" if state[1] == "|" else state[1])


class _Array:
    """Stands for a pickled array of protocol 4 and before, whose content comes as its state."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _numbers(data, dtype, shape, "F" if fortran else "C")


def _numbers(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    return np.frombuffer(data, dtype.value).reshape(shape, order="F" if order == "F" else "C")


class _ScoreUnpickler(pickle.Unpickler):
    """Knows the names in OpenOOD's score files; any other name is an error, before anything is imported."""

    _KNOWN: ClassVar[dict[tuple[str, str], str]] = {
        **{(f"numpy.{core}.multiarray", "_reconstruct"): "_reconstruct" for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): "_scalar" for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): "_frombuffer" for core in ("core", "_core")},
        ("numpy", "ndarray"): "_ndarray",
        ("numpy", "dtype"): "_dtype",
        ("collections", "OrderedDict"): "_dict",
        ("_codecs", "encode"): "_encode",
        ("torch._utils", "_rebuild_tensor_v2"): "_tensor",
        ("torch.storage", "_load_from_bytes"): "_storage",
    }

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which has no place among saved scores; nothing of it was executed"
            )
        known = getattr(self, self._KNOWN[module, name])
        # A function of this load alone: what a pickle may set on it is gone with it.
        return lambda *args: known(*args)

    def _reconstruct(self, *_: object) -> _Array:
        return _Array()

    def _ndarray(self, *_: object) -> None:
        raise pickle.UnpicklingError("it calls numpy.ndarray, which saved scores only name")

    def _dtype(self, *args: Any) -> _Dtype:
        return _Dtype(*args)

    def _scalar(self, dtype: _Dtype, data: bytes) -> float:
        return _numbers(data, dtype, (1,))[0].item()

    def _frombuffer(self, data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
        return _numbers(data, dtype, shape, order)

    def _dict(self, *_: object) -> dict:
        return {}

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it encodes text as {encoding!r}; NumPy uses 'latin1'")
        return text.encode("latin1")

    def _storage(self, data: bytes) -> np.ndarray:
        """The values of a tensor: five small pickles (the fourth has type and length), then the raw numbers.

        Read here and not by ``torch.load``, which could execute such bytes even with ``weights_only=True``
        before PyTorch 2.6.
        """
        stream = io.BytesIO(data)
        magic, version, system, (kind, code, *_), _ = (_StorageUnpickler(stream).load() for _ in range(5))
        if (magic, version, system["little_endian"], kind) != (_TORCH_MAGIC, 1001, True, "storage"):
            raise pickle.UnpicklingError("a tensor's values are not in the form that pickling gives them")
        count = int.from_bytes(stream.read(8), "little")
        return np.frombuffer(data, np.dtype(code), count, stream.tell())

    def _tensor(self, storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: object) -> np.ndarray:
        if stride != tuple(prod(size[axis + 1 :]) for axis in range(len(size))):
            raise pickle.UnpicklingError(f"a tensor of strides {stride}; expected a contiguous one")
        return storage[offset : offset + prod(size)].reshape(size)


class _StorageUnpickler(_ScoreUnpickler):
    """The same, inside a tensor's storage; its type, say torch.LongStorage, becomes NumPy's code for it."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return pid


class _Kept:
    """Stands for this package's postprocessors: what was pickled of one, as plain numbers."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


class _PostprocessorUnpickler(_ScoreUnpickler):
    """Knows this package's postprocessors too; those of OpenOOD's own are left unread."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "openood_adascale.postprocessor" and name.endswith("Postprocessor"):
            return type(name, (_Kept,), {})  # of this load alone
        return super().find_class(module, name)


def load_search(path: str | Path) -> pd.DataFrame | None:
    """The search table in a ``postprocessors/<name>.pkl`` of this package: settings and ``auroc``, in percent.

    None where there was no search, or where the file is not of this package (nothing of it is executed).
    """
    try:
        with Path(path).open("rb") as file:
            kept = _PostprocessorUnpickler(file).load()
    except Exception:  # OpenOOD's own postprocessors, networks and all
        return None
    search = kept.state.get("search") if isinstance(kept, _Kept) and isinstance(kept.state, dict) else None
    return pd.DataFrame(search) if search else None


def load_pickle(path: str | Path) -> dict[str, Scores]:
    """Read ``scores/<postprocessor>.pkl`` as eval_ood.py saves it: scores per scheme (``ood``, ``fsood``).

    ``fsood``, whose in-distribution images include the covariate-shifted sets, is there only if those were
    inferred. Raises :class:`~.results.ResultError` for anything that is not such a file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            saved = _ScoreUnpickler(file).load()
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise ResultError(f"{path}: not a score file that can be read safely: {error}") from error
    try:
        near, far = (dict(saved["ood"][side]) for side in ("near", "far"))
        id_test, csid = saved["id"]["test"], saved["csid"]
        labels = {"id": (saved["id_preds"], saved["id_labels"])}
        labels |= {name: (saved["csid_preds"][name], saved["csid_labels"][name]) for name in csid}
    except (TypeError, ValueError, KeyError) as error:
        raise ResultError(
            f"{path}: not the scores of OpenOOD's Evaluator: {error!r}; expected a dict with 'id', 'csid', "
            "'ood', 'id_preds', 'id_labels', 'csid_preds', 'csid_labels'"
        ) from error
    if id_test is None:
        return {}
    near, far = (
        {name: _confidence(path, name, entry) for name, entry in side.items() if entry is not None}
        for side in (near, far)
    )
    id_conf = _confidence(path, "id test", id_test)
    if not (near or far):
        return {}
    found = {"ood": Scores(id_conf, near, far, _accuracy(path, [labels["id"]]))}
    if csid and all(entry is not None for entry in csid.values()):
        conf = np.concatenate([id_conf, *(_confidence(path, name, entry) for name, entry in csid.items())])
        found["fsood"] = Scores(conf, near, far, _accuracy(path, list(labels.values())))
    return found


def load_npz(folder: str | Path, near: tuple[str, ...] = ()) -> Scores | None:
    """Read a folder of ``<set>.npz`` that main.py saved, labels -1 marking OOD; None if it has no ID scores.

    ``near`` names the near OOD sets; where it is empty the benchmarks' usual ones are taken.
    """
    inside: list[np.ndarray] = []
    sides: dict[bool, dict[str, np.ndarray]] = {True: {}, False: {}}  # near or not
    hits = total = 0
    near_names = frozenset(map(canonical_set, near)) or _NEAR_SETS
    for path in sorted(Path(folder).glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as saved:
                pred, conf, label = (saved[key] for key in ("pred", "conf", "label"))
        except Exception as error:  # zipfile, NumPy and zlib each have their own
            raise ResultError(
                f"{path}: not a score file of main.py's (pred, conf, label): {error}"
            ) from error
        conf = _confidence(path, path.stem, [pred, conf, label])
        if (label == -1).all():
            sides[canonical_set(path.stem) in near_names][path.stem] = conf
        else:
            inside.append(conf)
            hits, total = hits + int((pred == label).sum()), total + len(label)
    if not inside:
        return None
    return Scores(np.concatenate(inside), sides[True], sides[False], 100 * hits / total)


def _plain(value: Any) -> Any:
    return getattr(value, "value", None) if isinstance(value, _Array) else value


def _confidence(path: Path, name: str, entry: Any) -> np.ndarray:
    """The middle one of (prediction, confidence, label); infinities become large numbers."""
    values = [_plain(value) for value in entry] if isinstance(entry, list | tuple) else []
    conf = values[1] if len(values) == 3 else None
    if not isinstance(conf, np.ndarray) or conf.ndim == 0 or conf.size != len(conf):
        raise ResultError(
            f"{path}: {name}: expected arrays (prediction, confidence, label), a number per image"
        )
    if conf.size == 0 or np.isnan(conf).any():
        raise ResultError(f"{path}: {name}: {np.isnan(conf).sum()} of {conf.size} confidences are NaN")
    return np.clip(conf.reshape(-1).astype(np.float64), -_LARGEST, _LARGEST)


def _accuracy(path: Path, pairs: list[tuple[Any, Any]]) -> float | None:
    hits = total = 0
    for preds, labels in pairs:
        if preds is None or labels is None:
            return None
        preds, labels = np.asarray(_plain(preds)), np.asarray(_plain(labels))
        if preds.shape != labels.shape or preds.ndim != 1 or not preds.size:
            raise ResultError(f"{path}: predictions of shape {preds.shape} with labels of {labels.shape}")
        hits, total = hits + int((preds == labels).sum()), total + len(labels)
    return 100 * hits / total


def roc(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC curve, OOD being the positive class: the shares of ID and of OOD images flagged (0 to 1)."""
    is_ood = np.concatenate([np.zeros(len(inside)), np.ones(len(outside))])
    flagged_id, flagged_ood, _ = roc_curve(is_ood, -np.concatenate([inside, outside]))
    return flagged_id, flagged_ood


def fpr95_auroc(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """FPR@95 (the share of ID images flagged where 95 % of the OOD images are) and AUROC, in percent."""
    flagged_id, flagged_ood = roc(inside, outside)
    return 100 * float(flagged_id[np.argmax(flagged_ood >= 0.95)]), 100 * float(auc(flagged_id, flagged_ood))

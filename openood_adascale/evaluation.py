"""OpenOOD's protocol on any loaders, without OpenOOD: search, metrics per OOD set, table, CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn import metrics
from torch import nn
from tqdm.auto import tqdm

from .detector import Detector, unpack
from .encode import prepare
from .models import frozen, logits_of
from .settings import SettingError

COLUMNS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")


@dataclass
class Benchmark:
    """The loaders of an evaluation; each yields ``(images, labels)`` or OpenOOD's dicts.

    Args:
        test: in-distribution test images, with labels.
        near: near-OOD sets by name, at least one.
        far: far-OOD sets by name, at least one.
        val: in-distribution validation images: what methods learn from, and half of the search.
        ood_val: OOD validation images, the other half.
        train: in-distribution training images, for methods that learn from them.
        covariate_shift: OpenOOD's ``csid`` sets by name, which count as in-distribution under full-spectrum OOD.
    """

    test: Iterable[Any]
    near: Mapping[str, Iterable[Any]]
    far: Mapping[str, Iterable[Any]]
    val: Iterable[Any] | None = None
    ood_val: Iterable[Any] | None = None
    train: Iterable[Any] | None = None
    covariate_shift: Mapping[str, Iterable[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, sets in (("near", self.near), ("far", self.far)):
            if not isinstance(sets, Mapping) or not sets:
                raise SettingError(name, sets, "at least one OOD set, as {name: loader}")

    @classmethod
    def from_openood(cls, dataloader_dict: Mapping[str, Any]) -> Benchmark:
        """From ``Evaluator(...).dataloader_dict``."""
        known, ood = dataloader_dict["id"], dataloader_dict["ood"]
        return cls(
            known["test"],
            ood["near"],
            ood["far"],
            known.get("val"),
            ood.get("val"),
            known.get("train"),
            dataloader_dict.get("csid", {}),
        )

    @property
    def _known(self) -> dict[str, Any]:
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def _ood(self) -> dict[str, Any]:
        return {"val": self.ood_val, "near": self.near, "far": self.far}


@dataclass
class Result:
    """What :func:`evaluate` found."""

    table: pd.DataFrame
    """Rows: the near sets, ``nearood`` (their mean), the far sets, ``farood``; columns :data:`COLUMNS`, in percent."""
    scores: dict[str, np.ndarray]
    """Of ``id`` (with the covariate-shifted sets under full-spectrum OOD) and of every OOD set by name."""
    search: pd.DataFrame | None = None
    """The candidates and their AUROC in percent, where a detector searched."""


def ood_metrics(id_scores: np.ndarray, ood_scores: np.ndarray) -> dict[str, float]:
    """FPR@95, AUROC, AUPR_IN and AUPR_OUT in percent, as OpenOOD's ``compute_all_metrics`` defines them.

    OOD is the positive class: FPR@95 is the share of in-distribution images whose score is at or below the
    threshold that catches 95 % of the OOD images. Both AUPR are areas by the trapezoidal rule.

    Args:
        id_scores, ood_scores: 1-D, larger is more in-distribution.

    Raises:
        ValueError: an empty array, or NaN.
    """
    for name, values in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        if len(values) == 0 or np.isnan(values).any():
            raise ValueError(
                f"{name}: {len(values)} values, {np.isnan(values).sum()} NaN; expected some, and none NaN"
            )
    score = np.concatenate([id_scores, ood_scores])
    is_ood = np.r_[np.zeros(len(id_scores), dtype=int), np.ones(len(ood_scores), dtype=int)]
    fpr, tpr, _ = metrics.roc_curve(is_ood, -score)
    precision_in, recall_in, _ = metrics.precision_recall_curve(1 - is_ood, score)
    precision_out, recall_out, _ = metrics.precision_recall_curve(is_ood, -score)
    found = (
        fpr[np.argmax(tpr >= 0.95)],
        metrics.auc(fpr, tpr),
        metrics.auc(recall_in, precision_in),
        metrics.auc(recall_out, precision_out),
    )
    return dict(zip(COLUMNS, (100 * float(value) for value in found), strict=False))


def accuracy(network: nn.Module, *loaders: Iterable[Any], progress: bool | None = None) -> float:
    """The plain network's top-1 accuracy in percent over all images of ``loaders``; its state is put back."""
    correct = total = 0
    disable = None if progress is None else not progress
    with frozen(network), torch.no_grad():
        for loader in loaders:
            for batch in tqdm(loader, desc="Accuracy", disable=disable):
                images, labels = unpack(batch)
                # A network may change its input in place.
                logits = logits_of(network, network(prepare(network, images).clone()))
                pred = logits.argmax(1).cpu().numpy()
                if (labels < 0).any():
                    raise ValueError(
                        f"loader: its batch has labels {labels[labels < 0][:3]}; expected classes from 0 on"
                    )
                correct += int((pred == labels).sum())
                total += len(labels)
    if not total:
        raise ValueError("loader: it yields no images; expected at least one batch")
    return 100 * correct / total


def evaluate(
    method: Any,
    benchmark: Benchmark,
    network: nn.Module | None = None,
    *,
    search: bool | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    full_spectrum: bool = False,
    known_accuracy: float | None = None,
    progress: bool | None = None,
) -> Result:
    """OpenOOD's evaluation of one method: search or fit on validation data, then every near and far set.

    Args:
        method: a :class:`~openood_adascale.detector.Detector`, or any object with OpenOOD's postprocessor methods
            (``setup``, ``inference`` and, to search, ``APS_mode``, ``args_dict``, ``set_hyperparam``). A detector
            that is fitted already is not fitted anew.
        benchmark: the loaders.
        network: for a postprocessor, what its methods are called with. A detector brings its own.
        search: search the hyperparameters on ``val`` and ``ood_val``, where the method has any to search. None does
            so unless a detector is fitted, or has searched, already.
        sweep: for a detector, what to search instead of its default.
        full_spectrum: count the covariate-shifted sets as in-distribution (OpenOOD's ``--fsood``).
        known_accuracy: ACC in percent if it is known already; computed otherwise.
        progress: True or False shows or hides the bars; None shows them in a terminal.

    Raises:
        ValueError: loaders that the method needs are missing or empty, or scores are NaN.
    """
    if isinstance(method, Detector):
        network = method.network
        found = _prepare_detector(method, benchmark, search, sweep, progress)
    else:
        if network is None:
            raise TypeError(f"network: None is not allowed; {type(method).__name__} has none of its own")
        training = [module for module in network.modules() if module.training]
        network.eval()  # as OpenOOD's Evaluator does for its postprocessors
        try:
            found = _prepare_postprocessor(method, benchmark, network, search is not False)
            return _measure(method, benchmark, network, found, full_spectrum, known_accuracy, progress)
        finally:
            for module in training:
                module.training = True
    return _measure(method, benchmark, network, found, full_spectrum, known_accuracy, progress)


def _measure(
    method: Any,
    benchmark: Benchmark,
    network: nn.Module,
    found: pd.DataFrame | None,
    full_spectrum: bool,
    known_accuracy: float | None,
    progress: bool | None,
) -> Result:
    def scores(loader: Iterable[Any]) -> np.ndarray:
        if isinstance(method, Detector):
            return method.infer(loader, progress)[1]
        return np.asarray(method.inference(network, loader, progress=progress is not False)[1])

    shifted = list(benchmark.covariate_shift.values()) if full_spectrum else []
    known = np.concatenate([scores(loader) for loader in (benchmark.test, *shifted)])
    if known_accuracy is None:
        known_accuracy = accuracy(network, benchmark.test, *shifted, progress=progress)
    all_scores = {"id": known}
    rows: dict[str, dict[str, float]] = {}
    for split, sets in (("nearood", benchmark.near), ("farood", benchmark.far)):
        for name, loader in sets.items():
            all_scores[name] = scores(loader)
            rows[name] = ood_metrics(known, all_scores[name])
        rows[split] = dict(pd.DataFrame([rows[name] for name in sets]).mean())
    table = pd.DataFrame.from_dict(rows, orient="index").assign(ACC=known_accuracy)[list(COLUMNS)]
    return Result(table, all_scores, found)


def _prepare_detector(
    method: Detector, benchmark: Benchmark, search: bool | None, sweep: Any, progress: bool | None
) -> pd.DataFrame | None:
    if search is None:
        search = not method.settled
    source = method.settings.learns_from()
    if search and (sweep or method.default_sweep):
        _require(benchmark, "val", "ood_val")
        assert benchmark.val is not None
        assert benchmark.ood_val is not None
        learn_loader = None
        if method.streams and source == "train" and method.summary is None:
            _require(benchmark, "train")
            learn_loader = benchmark.train
        return method.search(benchmark.val, benchmark.ood_val, sweep, progress, learn_loader).table
    if method.needs_fit and method.state is None:
        _require(benchmark, source)
        method.fit(getattr(benchmark, source), progress)
    return None


def _prepare_postprocessor(
    method: Any, benchmark: Benchmark, network: nn.Module, search: bool
) -> pd.DataFrame | None:
    method.setup(network, benchmark._known, benchmark._ood)
    if not (search and getattr(method, "APS_mode", False)) or getattr(
        method, "hyperparam_search_done", False
    ):
        return None
    _require(benchmark, "val", "ood_val")
    combinations: list[list[Any]] = [[]]
    for values in method.args_dict.values():
        combinations = [[*chosen, value] for value in values for chosen in combinations]
    if not combinations[0]:
        raise SettingError("args_dict", method.args_dict, "at least one setting to search")
    aurocs = []
    for chosen in combinations:
        method.set_hyperparam(chosen)
        known, unknown = (
            method.inference(network, loader)[1] for loader in (benchmark.val, benchmark.ood_val)
        )
        aurocs.append(ood_metrics(known, unknown)["AUROC"])
    method.set_hyperparam(combinations[int(np.argmax(aurocs))])
    method.get_hyperparam()
    method.hyperparam_search_done = True
    return pd.DataFrame(combinations, columns=[key.removesuffix("_list") for key in method.args_dict]).assign(
        auroc=aurocs
    )


def _require(benchmark: Benchmark, *names: str) -> None:
    for name in names:
        if getattr(benchmark, name) is None:
            raise ValueError(
                f"benchmark.{name}: None is not allowed; the method needs these images to fit or search"
            )


def save_csv(tables: pd.DataFrame | Sequence[pd.DataFrame], path: str | Path) -> pd.DataFrame:
    """Write a table in OpenOOD's format and return what was written.

    Args:
        tables: one evaluation (two decimals, as ``eval_ood_imagenet.py``), or one per training run (``mean ± std``
            over the runs, as ``eval_ood.py``).
        path: of the CSV; its folder is made.
    """
    if isinstance(tables, pd.DataFrame):
        text = tables.map("{:.2f}".format)
    else:
        stacked = np.stack([table.to_numpy() for table in tables])
        mean, std = stacked.mean(0), stacked.std(0)
        text = tables[0].copy().astype(object)
        for row, column in np.ndindex(mean.shape):
            text.iat[row, column] = f"{mean[row, column]:.2f} \u00b1 {std[row, column]:.2f}"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text.to_csv(path)
    return text

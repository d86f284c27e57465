"""Objects with OpenOOD's postprocessor methods, evaluated without OpenOOD."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import pandas as pd
from torch import nn

from ..detectors.search import product, search_aurocs
from ..errors import SettingError
from ..metrics import as_scores
from .benchmark import Benchmark, naming
from .per_image import as_classes


class Postprocessor(Protocol):
    """Methods that OpenOOD calls of a postprocessor.

    To be searched it also has ``APS_mode``, ``args_dict``, ``set_hyperparam``, ``get_hyperparam`` and
    ``hyperparam_search_done``. It may have a ``network`` of its own; ``check(benchmark)``, which raises before any pass if
    images that it needs are missing; and ``from_features``, True if it takes features from the feature cache in use.
    """

    def setup(self, net: Any, id_loader_dict: Any, ood_loader_dict: Any) -> Any:
        """Fit."""

    def inference(self, net: Any, data_loader: Any, progress: bool = True) -> Any:
        """Return (N,) predicted classes, scores and labels of a loader's images."""


def is_postprocessor(method: Any) -> bool:
    """Return True if an object has a postprocessor's methods."""
    return all(callable(getattr(method, name, None)) for name in ("setup", "inference"))


def infer(
    method: Postprocessor, network: nn.Module, loader: Iterable[Any], name: str, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (N,) predicted classes, float64 scores and labels of a loader's images (−1 for missing ones)."""
    with naming(name):
        predictions, scores, labels = method.inference(network, loader, progress=progress)
    scores = as_scores(f"{name}: scores", scores)
    if not len(scores):
        raise ValueError(f"{name}: {type(method).__name__} returned no scores; expected one for each image")
    return as_classes(predictions, len(scores)), scores, as_classes(labels, len(scores))


def check(method: Postprocessor, benchmark: Benchmark, search: bool) -> None:
    """Check that the images to fit or search with are there, before any pass."""
    if callable(own := getattr(method, "check", None)):
        own(benchmark)
    if _is_searched(method, search):
        for name in ("val", "ood_val"):
            benchmark.loader(name)


def _is_searched(method: Postprocessor, search: bool) -> bool:
    wanted = search and bool(getattr(method, "APS_mode", False))
    return wanted and not getattr(method, "hyperparam_search_done", False)


def prepare(
    method: Postprocessor, benchmark: Benchmark, network: nn.Module, search: bool
) -> pd.DataFrame | None:
    """Set a postprocessor up and search as OpenOOD's Evaluator does, and return the candidates if there was a search."""
    method.setup(network, benchmark.id_loader_dict, benchmark.ood_loader_dict)
    searched: Any = method
    if not _is_searched(method, search):
        return None
    if not searched.args_dict:
        raise SettingError("args_dict", searched.args_dict, "at least one setting to search")
    tried = [list(chosen.values()) for chosen in product(searched.args_dict)]

    def scores(chosen: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        searched.set_hyperparam(chosen)
        id_scores, ood_scores = (
            infer(method, network, benchmark.loader(name), name, False)[1] for name in ("val", "ood_val")
        )
        return id_scores, ood_scores

    aurocs = search_aurocs(tried, scores, progress=False)
    searched.set_hyperparam(tried[int(np.argmax(aurocs))])
    searched.get_hyperparam()
    searched.hyperparam_search_done = True
    columns = [key.removesuffix("_list") for key in searched.args_dict]
    return pd.DataFrame(tried, columns=columns).assign(auroc=aurocs)

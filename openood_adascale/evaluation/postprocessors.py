"""Objects with OpenOOD's postprocessor methods, evaluated without OpenOOD."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import pandas as pd
from torch import nn

from ..detectors.search import product, search_aurocs
from ..errors import SettingError
from .benchmark import Benchmark
from .per_image import whole


class Postprocessor(Protocol):
    """What OpenOOD calls of a postprocessor; to be searched it also has ``APS_mode``, ``args_dict``,
    ``set_hyperparam``, ``get_hyperparam`` and ``hyperparam_search_done``. It may have a ``network`` of its own, and
    ``check(benchmark)``, which raises before any pass where images that it needs are missing."""

    def setup(self, net: Any, id_loader_dict: Any, ood_loader_dict: Any) -> Any:
        """Learn."""

    def inference(self, net: Any, data_loader: Any, progress: bool = True) -> Any:
        """(N,) predicted classes, scores and labels of a loader's images."""


def is_postprocessor(method: Any) -> bool:
    """Whether it has a postprocessor's methods."""
    return all(callable(getattr(method, name, None)) for name in ("setup", "inference"))


def inferred(
    method: Postprocessor, network: nn.Module, loader: Iterable[Any], progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) predicted classes, scores and labels of a loader's images; −1 for classes or labels that are none."""
    predictions, scores, labels = method.inference(network, loader, progress=progress)
    scores = np.asarray(scores)
    return whole(predictions, len(scores)), scores, whole(labels, len(scores))


def check(method: Postprocessor, benchmark: Benchmark, search: bool) -> None:
    """Raise where images to learn or search with are missing, before any pass that needs them.

    Raises:
        ValueError: they are; and whatever the method's own ``check`` raises.
    """
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
    """Set ``method`` up and search as OpenOOD's Evaluator does; the search's table, if there was one."""
    method.setup(network, benchmark.known, benchmark.ood)
    searched: Any = method
    if not _is_searched(method, search):
        return None
    known, unknown = benchmark.loader("val"), benchmark.loader("ood_val")
    if not searched.args_dict:
        raise SettingError("args_dict", searched.args_dict, "at least one setting to search")
    tried = [list(chosen.values()) for chosen in product(searched.args_dict)]

    def scores(chosen: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        searched.set_hyperparam(chosen)
        return inferred(method, network, known, False)[1], inferred(method, network, unknown, False)[1]

    aurocs = search_aurocs(tried, scores, progress=False)
    searched.set_hyperparam(tried[int(np.argmax(aurocs))])
    searched.get_hyperparam()
    searched.hyperparam_search_done = True
    columns = [key.removesuffix("_list") for key in searched.args_dict]
    return pd.DataFrame(tried, columns=columns).assign(auroc=aurocs)

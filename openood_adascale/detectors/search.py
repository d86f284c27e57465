"""Hyperparameter search: candidates of a sweep and their AUROC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from tqdm.auto import tqdm

from ..errors import SettingError, key_text
from ..features.loading import is_hidden
from ..metrics import auroc
from .settings import INFERENCE, Settings, restore_list, section_of

if TYPE_CHECKING:
    import pandas as pd  # slow to import, and scoring does not need it

S = TypeVar("S", bound=Settings)
C = TypeVar("C")


@dataclass(frozen=True)
class SearchResult(Generic[S]):
    """Result of a hyperparameter search.

    >>> found = SCALE(network).search(val_loader, ood_val_loader, {"percentile_list": [65, 85, 95]})
    >>> found.results["percentile"].tolist(), bool(found.best_auroc == found.results["auroc"].max())
    ([65.0, 85.0, 95.0], True)
    """

    best_settings: S
    """Settings of the best candidate (the first one of equals, as in OpenOOD's Evaluator)."""
    best_auroc: float
    """AUROC of the best candidate on the validation images, in percent."""
    results: pd.DataFrame
    """One row per candidate in OpenOOD's order: settings and ``auroc`` in percent."""


def search_aurocs(
    tried: Sequence[C],
    scores: Callable[[C], tuple[np.ndarray, np.ndarray]],
    progress: bool | None = None,
) -> list[float]:
    """Return the AUROC of each candidate in percent.

    Args:
        tried: The candidates.
        scores: Returns a candidate's scores of ID and of OOD validation images.
        progress: True or False shows or hides the progress bar (default: shown in a terminal).

    Raises:
        ValueError: NaN, infinite or no scores; names the candidate.
    """
    aurocs = []
    for candidate in tqdm(tried, desc="Candidates", disable=is_hidden(progress)):
        id_scores, ood_scores = scores(candidate)
        try:
            aurocs.append(auroc(id_scores, ood_scores))
        except ValueError as error:
            raise ValueError(f"candidate {candidate!r}: {error}") from error
    return aurocs


def product(lists: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of the lists' values in OpenOOD's order: the first list varies fastest."""
    combinations: list[dict[str, Any]] = [{}]
    for name, values in lists.items():
        combinations = [{**chosen, name: value} for value in values for chosen in combinations]
    return combinations


def candidates(base: S, sweep: Mapping[str, Any] | None) -> list[S]:
    """Return the settings of every combination of a sweep's lists, in OpenOOD's order.

    Args:
        base: Settings that are not swept.
        sweep: ``{"<setting>_list": [values]}`` in any order (``percentile_list`` holds pairs); the suffix is optional.

    Raises:
        SettingError: No sweep, an empty list, an unknown setting, or a value out of range.
    """
    swept = parse_sweep(type(base), sweep)
    return [base.replace(**chosen) for chosen in product(swept)]


def parse_sweep(settings_class: type[Settings], sweep: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """Return ``{setting: values}`` of a YAML file's ``postprocessor_sweep``; see :func:`candidates`."""
    if not section_of("postprocessor_sweep", sweep):
        raise SettingError(
            "postprocessor_sweep", sweep, "at least one list <setting>_list, or APS_mode: False"
        )
    swept: dict[str, list[Any]] = {}
    for key, values in (sweep or {}).items():
        key = key_text(key)
        name = key.removesuffix("_list")
        if name not in settings_class.names():
            fixed = {*settings_class.not_swept, *INFERENCE}
            known = ", ".join(f"{n}_list" for n in settings_class.names() if n not in fixed)
            raise SettingError(f"postprocessor_sweep: {key}", values, "one of: " + known)
        if name in settings_class.not_swept or name in INFERENCE:
            raise SettingError(f"postprocessor_sweep: {key}", values, f"{name} in postprocessor_args only")
        values = restore_list(values)
        if isinstance(values, range | np.ndarray):
            values = values if isinstance(values, range) else values.tolist()
        if not isinstance(values, list | tuple | range) or len(values) == 0:
            raise SettingError(f"postprocessor_sweep: {key}", values, "a list of at least one value")
        swept[name] = list(values)
    return swept

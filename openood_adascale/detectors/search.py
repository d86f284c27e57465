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
    """Settings and ``auroc`` (percent) of each candidate, one row each, in OpenOOD's order."""


def search_aurocs(
    tried: Sequence[C], scores: Callable[[C], tuple[np.ndarray, np.ndarray]], progress: bool | None = None
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
    return [base.replace(**chosen) for chosen in product(parse_sweep(type(base), sweep))]


def parse_sweep(settings_class: type[Settings], sweep: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """Return ``{setting: values}`` of a YAML file's ``postprocessor_sweep``; see :func:`candidates`."""
    section = section_of("postprocessor_sweep", sweep)
    if not section:
        allowed = "at least one list <setting>_list, or APS_mode: False"
        raise SettingError("postprocessor_sweep", sweep, allowed)
    fixed = {*settings_class.not_swept, *INFERENCE}
    swept: dict[str, list[Any]] = {}
    for key, values in section.items():
        name = key_text(key).removesuffix("_list")
        values = restore_list(values.tolist() if isinstance(values, np.ndarray) else values)
        allowed = ""
        if name not in settings_class.names():
            allowed = "one of: " + ", ".join(f"{n}_list" for n in settings_class.names() if n not in fixed)
        elif name in fixed:
            allowed = f"{name} in postprocessor_args only"
        elif not isinstance(values, list | tuple | range) or len(values) == 0:
            allowed = "a list of at least one value"
        if allowed:
            raise SettingError(f"postprocessor_sweep: {key_text(key)}", values, allowed)
        swept[name] = list(values)
    return swept

"""The candidates of a hyperparameter search, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from tqdm.auto import tqdm

from ..errors import SettingError
from ..evidence.batch import hidden
from ..metrics import auroc
from .settings import EXECUTION, Settings, section_of, unscramble

if TYPE_CHECKING:
    import pandas as pd

S = TypeVar("S", bound=Settings)
C = TypeVar("C")


@dataclass(frozen=True)
class Search(Generic[S]):
    """Outcome of a hyperparameter search.

    >>> found = SCALE(network).search(val_loader, ood_val_loader, {"percentile_list": [65, 85, 95]})
    >>> found.table["percentile"].tolist(), found.auroc in found.table["auroc"].tolist()
    ([65.0, 85.0, 95.0], True)
    """

    settings: S
    """The best candidate's; the first of equals, as in OpenOOD's Evaluator."""
    auroc: float
    """Its AUROC on the validation data, in percent."""
    table: pd.DataFrame
    """One row per candidate, in OpenOOD's order: its settings and ``auroc`` in percent."""


def search_aurocs(
    tried: Sequence[C],
    scores: Callable[[C], tuple[np.ndarray, np.ndarray]],
    progress: bool | None = None,
) -> list[float]:
    """The AUROC, in percent, of each candidate; ``scores`` gives those of known and of OOD validation images.

    Raises:
        ValueError: scores that are NaN or infinite, or none; says which candidate's.
    """
    aurocs = []
    for candidate in tqdm(tried, desc="Candidates", disable=hidden(progress)):
        known, unknown = scores(candidate)
        try:
            aurocs.append(auroc(known, unknown))
        except ValueError as error:
            raise ValueError(f"candidate {candidate!r}: {error}") from error
    return aurocs


def product(lists: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the lists' values, in OpenOOD's order: the first list runs fastest."""
    combinations: list[dict[str, Any]] = [{}]
    for name, values in lists.items():
        combinations = [{**chosen, name: value} for value in values for chosen in combinations]
    return combinations


def candidates(base: S, sweep: Mapping[str, Any] | None) -> list[S]:
    """Every combination of a sweep's lists, in OpenOOD's order: the first setting runs fastest.

    Args:
        base: gives what is not swept.
        sweep: ``{"<setting>_list": [values]}`` in any order (``percentile_list`` holds pairs); the suffix may be
            left out.

    Raises:
        SettingError: no sweep, an empty list, an unknown setting, a value out of range.
    """
    swept = parse_sweep(type(base), sweep)
    return [base.replace(**chosen) for chosen in product(swept)]


def parse_sweep(settings_class: type[Settings], sweep: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """``{setting: values}`` of a yml's ``postprocessor_sweep``; see :func:`candidates`."""
    if not section_of("postprocessor_sweep", sweep):
        raise SettingError(
            "postprocessor_sweep", sweep, "at least one list <setting>_list, or APS_mode: False"
        )
    swept: dict[str, list[Any]] = {}
    for key, values in (sweep or {}).items():
        name = str(key).removesuffix("_list")
        if name not in settings_class.names():
            unswept = {*settings_class.not_swept, *EXECUTION}
            known = ", ".join(f"{n}_list" for n in settings_class.names() if n not in unswept)
            raise SettingError(f"postprocessor_sweep: {key}", values, "one of: " + known)
        if name in settings_class.not_swept or name in EXECUTION:
            raise SettingError(f"postprocessor_sweep: {key}", values, f"{name} in postprocessor_args alone")
        values = unscramble(values)
        if isinstance(values, range | np.ndarray):
            values = values if isinstance(values, range) else values.tolist()
        if not isinstance(values, list | tuple | range) or len(values) == 0:
            raise SettingError(f"postprocessor_sweep: {key}", values, "a list of at least one value")
        swept[name] = list(values)
    return swept

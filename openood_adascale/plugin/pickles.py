"""What a pickled postprocessor holds: numbers and settings, never the network; its format and its errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..detectors.registry import Method
from ..detectors.settings import Settings
from ..errors import shown
from .freshness import MadeFor
from .search_session import Aurocs
from .yml import Configuration, YmlSource

# To be raised, too, when the network's digest comes to be computed in another way.
FORMAT = 3


@dataclass
class Remembered:
    """What a postprocessor is in another session."""

    configured: Configuration
    """As its yml said."""
    settings: Settings
    """As they were at last."""
    state: Any
    """What was learnt: a tensor, a dict of them, or None."""
    made_for: MadeFor
    setup_flag: bool
    hyperparam_search_done: bool
    yml_source: YmlSource | None
    search: Aurocs


def dump(kept: Remembered) -> dict[str, Any]:
    """Plain dicts, lists, numbers, words and NumPy arrays; :func:`load` reads them."""
    return {
        "format": FORMAT,
        "configured": kept.configured.as_section(),
        "settings": kept.settings.as_dict(),
        "state": _arrays(kept.state),
        "made_for": asdict(kept.made_for),
        "setup_flag": kept.setup_flag,
        "hyperparam_search_done": kept.hyperparam_search_done,
        "yml_source": None if kept.yml_source is None else tuple(kept.yml_source),
        "search": _columns(kept.search),
    }


def load(stored: object, method: Method) -> Remembered:
    """The inverse of :func:`dump`.

    Raises:
        RuntimeError: made by another version, damaged, or changed by hand; says which file to delete.
    """
    found = stored.get("format") if isinstance(stored, dict) else None
    if not isinstance(stored, dict) or type(found) is not int or found != FORMAT:
        raise RuntimeError(
            f"{named(method.name)}: it has format {shown(found)}; this openood-adascale reads format {FORMAT}. Delete "
            "it and run again"
        )
    try:
        source = stored["yml_source"]
        configured = Configuration.parse(method, stored["configured"])
        return Remembered(
            configured=configured,
            settings=configured.settings.replace(**stored["settings"]),
            state=_tensors(stored["state"]),
            made_for=MadeFor(**stored["made_for"]),
            setup_flag=bool(stored["setup_flag"]),
            hyperparam_search_done=bool(stored["hyperparam_search_done"]),
            yml_source=None if source is None else YmlSource(*source),
            search=_rows(stored["search"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RuntimeError(
            f"{named(_name(stored, method))}: damaged, or changed by hand ({type(error).__name__}: {error}). Delete it "
            "and run again"
        ) from error


def named(name: str) -> str:
    """Which file it is, as far as that can be told from within: OpenOOD's scripts open it and say no more."""
    return f"the pickled postprocessor {name!r} (results/<run>/s*/postprocessors/{name}.pkl)"


def outdated(name: str, reasons: list[str]) -> str:
    """What to tell of a pickle that does not serve any more."""
    return (
        f"{named(name)} is out of date ({'; '.join(reasons)}): fitting and searching anew. OpenOOD does not rewrite that "
        "file; delete it, and the saved scores of the same name in ../scores if there are any (OpenOOD shows those "
        "instead of fresh ones)"
    )


def _name(stored: Mapping[str, Any], method: Method) -> str:
    source = stored.get("yml_source")
    return source[1] if isinstance(source, tuple) and len(source) == 3 else method.name


def _arrays(state: Any) -> Any:
    """What a method learnt, with NumPy arrays for its tensors."""
    if isinstance(state, Mapping):
        return {key: _arrays(value) for key, value in state.items()}
    return state.numpy() if isinstance(state, Tensor) else state


def _tensors(state: Any) -> Any:
    """The inverse of :func:`_arrays`."""
    if isinstance(state, Mapping):
        return {key: _tensors(value) for key, value in state.items()}
    return torch.from_numpy(state) if isinstance(state, np.ndarray) else state


def _columns(search: Aurocs) -> dict[str, Any]:
    """The search as columns, of which a report makes a heat map."""
    rows = [{**dict(row), "auroc": auroc} for row, auroc in search.items()]
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    is_number = {name: all(isinstance(v, float | int) for v in values) for name, values in columns.items()}
    return {n: np.array(v, dtype=np.float32) if is_number[n] else v for n, v in columns.items()}


def _rows(stored: Mapping[str, Any]) -> Aurocs:
    """The inverse of :func:`_columns`."""
    columns = {name: np.asarray(values).tolist() for name, values in stored.items()}
    aurocs = columns.pop("auroc", [])
    rows = [tuple(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return dict(zip(rows, aurocs, strict=True))

"""What every method's scores are to be, in NumPy float64, of the network's activations; and how near is near enough."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import reference
from scipy.special import logsumexp, softmax

from openood_adascale.detectors.settings import Settings


class Read(NamedTuple):
    """What a network says of some images."""

    a: np.ndarray
    """(N, D), float64 like the others."""
    a_eps: np.ndarray | None
    logits: np.ndarray
    """(N, C)."""
    predicted: np.ndarray
    """(N,)."""


class Wanted(NamedTuple):
    """Scores, by how much they may be off, and which of them are certain."""

    scores: np.ndarray
    tolerance: np.ndarray
    certain: np.ndarray


def scores(
    settings: Settings, state: Any, learnt: Read, read: Read, weight: np.ndarray, bias: np.ndarray, eps: float
) -> Wanted:
    """Of a method's settings and what it has learnt.

    Args:
        state: the detector's, where the bins of a histogram decide (BFAct, OptFS).
        learnt, read: of the images that were learnt from, and of those that are scored.
        eps: of the network's arithmetic.
    """
    kind = type(settings).__name__
    certain = np.ones(len(read.a), bool)
    # Of a sum, rounding is relative to its terms.
    terms = (np.abs(read.a) @ np.abs(weight).T + np.abs(bias)).max(1) * eps * 16 * np.sqrt(weight.shape[1])
    if kind == "AdaSCALESettings":
        found, factor, certain = _adascale(settings, learnt, read, weight, bias)
        by = np.exp(factor) if getattr(settings, "variant", "") == "A" else factor**2
        return Wanted(found, _tolerance(found) + terms * by, certain)
    if kind in ("FixedPercentileSettings", "LTSSettings"):
        percentile: float = getattr(settings, "percentile")  # noqa: B009
        factor = np.array([reference.factor(row, percentile) for row in read.a])
        variant = "L" if kind == "LTSSettings" else "A"
        by = factor**2 if variant == "L" else np.exp(factor)
        pairs = zip(read.a, factor, strict=True)
        found = np.array(
            [logsumexp(reference.scaled_logits(row, weight, bias, r, variant)) for row, r in pairs]
        )
        return Wanted(found, _tolerance(found) + terms * by, certain)
    if kind == "BFActSettings":
        found = np.array([_bfact(row, weight, bias, float(state), settings) for row in read.a])
        return Wanted(found, _tolerance(found) + terms, certain)
    if kind == "OptFSSettings":
        return _optfs(settings, state, learnt, read, weight, bias, terms)
    return Wanted(np.zeros(0), terms, certain)


def plain(label: str, read: Read, weight: np.ndarray, bias: np.ndarray, eps: float) -> Wanted:
    """Of the methods that look at the logits alone."""
    z = read.a @ weight.T + bias
    terms = (np.abs(read.a) @ np.abs(weight).T + np.abs(bias)).max(1) * eps * 16 * np.sqrt(weight.shape[1])
    found = softmax(z, axis=1).max(1) if label == "MSP" else logsumexp(z, axis=1)
    return Wanted(found, _tolerance(found) + terms, np.ones(len(z), bool))


def _tolerance(found: np.ndarray) -> np.ndarray:
    return 1e-4 + 1e-4 * np.abs(found)


def _adascale(
    settings: Any, learnt: Read, read: Read, weight: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    k1, k2, lmbda = settings.k1, settings.k2, settings.lmbda
    found, factor, _ = reference.scores(
        learnt.a, learnt.a_eps, read.a, read.a_eps, weight, bias, variant=settings.variant,
        percentile_pair=settings.percentile, k1=k1, k2=k2, lmbda=lmbda,
    )  # fmt: skip
    q_val, q = (
        np.array([reference.oodness(*pair, k1, k2, lmbda) for pair in zip(r.a, r.a_eps, strict=True)])
        for r in (learnt, read)
    )
    # Where a Q' is all but equal to a learnt one, rounding says which of two percentiles it is.
    apart = np.abs(q[:, None] - q_val[None])
    scale = 1e-5 * np.maximum(np.abs(q)[:, None], np.abs(q_val)[None])
    return found, factor, ~((apart < scale) & (apart > 0)).any(1)


def _bfact(row: np.ndarray, weight: np.ndarray, bias: np.ndarray, cutoff: float, settings: Any) -> float:
    if cutoff == 0:
        return float(logsumexp(bias))
    with np.errstate(over="ignore"):
        shaped = row / np.sqrt(1 + np.abs(row / cutoff) ** (2 * settings.order))
    return float(logsumexp(weight @ shaped + bias))


def _optfs(
    settings: Any,
    state: Any,
    learnt: Read,
    read: Read,
    weight: np.ndarray,
    bias: np.ndarray,
    terms: np.ndarray,
) -> Wanted:
    edges, theta = (state[name].double().numpy() for name in ("edges", "theta"))
    shaped = read.a * _constant_of(read.a, edges, theta)
    if settings.score == "energy":
        wanted = logsumexp(shaped @ weight.T + bias, axis=1)
    else:
        wanted = (shaped * weight[read.predicted]).sum(1)
    by = np.abs(theta).max(initial=1)
    return Wanted(wanted, _tolerance(wanted) + terms * by, np.ones(len(wanted), bool))


def _constant_of(a: np.ndarray, edges: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Which piece each activation, as a float32 number, is in; 0 outside of all."""
    place = np.searchsorted(edges, a.astype(np.float32).astype(np.float64), side="right")
    return np.concatenate([[0], theta, [0]])[place]


def learnt_state(settings: Any, state: Any, learnt: Read, weight: np.ndarray) -> str:
    """What is wrong with what BFAct or OptFS has learnt; nothing if nothing is."""
    a = learnt.a.astype(np.float32).astype(np.float64)
    percents = np.atleast_1d(settings.percentile)
    exact = np.percentile(a, percents)
    around = [
        np.sort(a, axis=None)[[int(place), min(int(place) + 1, a.size - 1)]]
        for place in percents / 100 * (a.size - 1)
    ]
    near = 2**-14 * np.maximum(np.abs(around).max(), 2**-100)
    if type(settings).__name__ == "BFActSettings":
        found = float(state)
        return "" if abs(found - exact[0]) <= near else f"T is {found}, and the percentile {exact[0]}"
    edges, theta = (state[name].double().numpy() for name in ("edges", "theta"))
    if max(abs(edges[[0, -1]] - exact)) > near:
        return f"the edges go from {edges[0]} to {edges[-1]}, and the percentiles are {exact}"
    place = np.searchsorted(edges, a, side="right")
    importance = np.bincount(place.ravel(), (weight[learnt.predicted] * learnt.a).ravel(), len(edges) + 1)[
        1:-1
    ]
    size = np.bincount(place.ravel(), np.abs(weight[learnt.predicted] * learnt.a).ravel(), len(edges) + 1)[
        1:-1
    ]
    norm = np.sqrt((importance**2).sum())
    wanted = 1000 * importance / max(norm, np.finfo(float).tiny)
    if norm < 1e-6 * size.max(initial=0):  # what is left of what cancels
        return ""
    off = np.abs(theta - wanted).max(initial=0)
    return "" if off <= 1e-3 * 1000 else f"theta is off by {off}"

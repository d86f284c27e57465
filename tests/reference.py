"""Every method in NumPy float64, one image at a time, straight from the papers. Slow and independent."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, softmax
from scipy.stats import ecdf


def count(percent: float, size: int) -> int:
    return max(1, int(size * percent / 100))


def trivial_pixels(gradient: np.ndarray, fraction: float, pixels: str) -> np.ndarray:
    """Boolean mask R over the flat gradient of one image."""
    size = gradient.size
    n = size if pixels == "all" else max(1, int(size * fraction))
    magnitude = np.abs(gradient).ravel()
    order = np.argsort(-magnitude if pixels == "salient" else magnitude, kind="stable")
    mask = np.zeros(size, dtype=bool)
    mask[order[:n]] = True
    return mask.reshape(gradient.shape)


def oodness(a: np.ndarray, a_eps: np.ndarray, k1: float, k2: float, lmbda: float) -> float:
    """Q' of one image."""
    order = np.argsort(-a, kind="stable")
    q = np.abs(a_eps - a)[order[: count(k1, a.size)]].sum()
    c_o = np.maximum(a_eps, 0)[order[: count(k2, a.size)]].sum()
    return lmbda * q + c_o


def percentile(q_val: np.ndarray, q: np.ndarray, p_min: float, p_max: float) -> np.ndarray:
    cdf = ecdf(q_val).cdf.evaluate(q)
    return p_min + (1 - cdf) * (p_max - p_min)


def factor(a: np.ndarray, p: float) -> float:
    """r of one image."""
    positive = np.maximum(a, 0)
    k = max(1, a.size - int(np.round(a.size * p / 100)))  # NumPy rounds half to even
    kept = np.sort(positive)[::-1][:k].sum()
    return 1.0 if kept == 0 else positive.sum() / kept


def scaled_logits(a: np.ndarray, weight: np.ndarray, bias: np.ndarray, r: float, variant: str) -> np.ndarray:
    if variant == "A":
        return weight @ (a * np.exp(r)) + bias
    return (weight @ a + bias) * r**2


def scores(
    a_val: np.ndarray,
    a_val_eps: np.ndarray,
    a: np.ndarray,
    a_eps: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    variant: str = "A",
    percentile_pair: tuple[float, float] = (80, 85),
    k1: float = 1,
    k2: float = 5,
    lmbda: float = 10,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, factors and predictions of images with activations (N, D), given the validation images'."""
    a_val, a_val_eps, a, a_eps, weight, bias = (
        np.asarray(x, dtype=np.float64) for x in (a_val, a_val_eps, a, a_eps, weight, bias)
    )
    q_val = np.array([oodness(*pair, k1, k2, lmbda) for pair in zip(a_val, a_val_eps, strict=True)])
    q = np.array([oodness(*pair, k1, k2, lmbda) for pair in zip(a, a_eps, strict=True)])
    p = percentile(q_val, q, *percentile_pair)
    r = np.array([factor(row, p_row) for row, p_row in zip(a, p, strict=True)])
    logits = np.stack(
        [scaled_logits(row, weight, bias, r_row, variant) for row, r_row in zip(a, r, strict=True)]
    )
    return logsumexp(logits, axis=1), r, logits.argmax(1)


# Baselines. All of them take (N, D) activations, the head, and their paper's hyperparameters.


def logits(a: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return a @ weight.T + bias


def msp(a: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return softmax(logits(a, weight, bias), axis=1).max(1)


def energy(a: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return logsumexp(logits(a, weight, bias), axis=1)


def scale(a: np.ndarray, weight: np.ndarray, bias: np.ndarray, percentile: float) -> np.ndarray:
    rows = [scaled_logits(row, weight, bias, factor(row, percentile), "A") for row in a]
    return logsumexp(np.stack(rows), axis=1)


def lts(a: np.ndarray, weight: np.ndarray, bias: np.ndarray, percentile: float) -> np.ndarray:
    rows = [scaled_logits(row, weight, bias, factor(row, percentile), "L") for row in a]
    return logsumexp(np.stack(rows), axis=1)


def bfact(a: np.ndarray, weight: np.ndarray, bias: np.ndarray, cutoff: float, order: float) -> np.ndarray:
    return energy(a / np.sqrt(1 + (np.abs(a) / abs(cutoff)) ** (2 * order)), weight, bias)


def optfs_theta(a: np.ndarray, weight: np.ndarray, bias: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """θ of the bins between ``edges``, from (N, D) training activations."""
    importance = np.zeros(len(edges) - 1)
    for row in a:
        contribution = weight[np.argmax(weight @ row + bias)] * row
        for k in range(len(importance)):
            importance[k] += contribution[(row >= edges[k]) & (row < edges[k + 1])].sum() / len(a)
    return 1000 * importance / np.sqrt((importance**2).sum())


def optfs(
    a: np.ndarray, weight: np.ndarray, bias: np.ndarray, edges: np.ndarray, theta: np.ndarray, score: str
) -> np.ndarray:
    shaped = np.zeros_like(a)
    for k in range(len(theta)):
        inside = (a >= edges[k]) & (a < edges[k + 1])
        shaped[inside] = theta[k] * a[inside]
    if score == "energy":
        return energy(shaped, weight, bias)
    return (weight[logits(a, weight, bias).argmax(1)] * shaped).sum(1)

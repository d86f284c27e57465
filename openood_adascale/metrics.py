"""Metrics of OOD detection: FPR@95, AUROC, AUPR and thresholds, as OpenOOD defines them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

COLUMNS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")
"""Columns of OpenOOD's tables, in percent."""


def as_scores(name: str, scores: Any) -> np.ndarray:
    """Return scores of any kind as (N,) float64.

    Args:
        name: Name in errors.
        scores: (N,) numbers: an array of any dtype, a tensor on any device, or a list of either.

    Raises:
        ValueError: Not one number per image.
    """
    try:
        if isinstance(scores, list | tuple):
            scores = [float(score) for score in scores]
        elif hasattr(scores, "detach"):  # a tensor; bfloat16 has no counterpart in NumPy
            scores = scores.detach().cpu().double().numpy()
        found = np.asarray(scores)
        if found.dtype.kind == "c":
            raise TypeError("complex numbers")
        found = found.astype(np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{name}: {type(scores).__name__} is not allowed; expected (N,) numbers ({error})"
        ) from error
    if found.ndim != 1:
        raise ValueError(f"{name}: shape {found.shape} is not allowed; expected (N,) numbers")
    return found


def _checked(id_scores: Any, ood_scores: Any) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for name, scores in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        values = as_scores(name, scores)
        if len(values) == 0:
            raise ValueError(f"{name}: no scores; expected at least one")
        if bad := int(np.count_nonzero(~np.isfinite(values))):
            raise ValueError(
                f"{name}: {bad} of {len(values)} values are NaN or infinite; expected finite numbers"
            )
        found.append(values)
    return found[0], found[1]


def roc(id_scores: Any, ood_scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the ROC curve with OOD as the positive class.

    Args:
        id_scores: (N,) scores of ID images (array, tensor or list of any dtype); larger is more in-distribution.
        ood_scores: (M,) scores of OOD images.

    Returns:
        Shares, 0 to 1, of the ID and of the OOD images that are flagged, by descending threshold.

    Raises:
        ValueError: An empty array, NaN or infinity; names the side and the count.
    """
    from sklearn import metrics  # late, as scoring images does not need it

    id_scores, ood_scores = _checked(id_scores, ood_scores)
    flagged_id, flagged_ood, _ = metrics.roc_curve(
        _is_ood(id_scores, ood_scores), -_all(id_scores, ood_scores)
    )
    return flagged_id, flagged_ood


def fpr95_auroc(id_scores: Any, ood_scores: Any) -> tuple[float, float]:
    """Return FPR@95 and AUROC in percent; see :func:`ood_metrics`.

    Args:
        id_scores: (N,) scores of ID images; larger is more in-distribution.
        ood_scores: (M,) scores of OOD images.
    """
    from sklearn import metrics

    flagged_id, flagged_ood = roc(id_scores, ood_scores)
    fpr95 = flagged_id[np.argmax(flagged_ood >= 0.95)]
    return 100 * float(fpr95), 100 * float(metrics.auc(flagged_id, flagged_ood))


def auroc(id_scores: Any, ood_scores: Any) -> float:
    """Return the AUROC in percent; see :func:`ood_metrics`.

    Args:
        id_scores: (N,) scores of ID images; larger is more in-distribution.
        ood_scores: (M,) scores of OOD images.
    """
    return fpr95_auroc(id_scores, ood_scores)[1]


def ood_metrics(id_scores: Any, ood_scores: Any) -> dict[str, float]:
    """Return FPR@95, AUROC, AUPR_IN and AUPR_OUT in percent, as OpenOOD's ``compute_all_metrics`` does.

    OOD is the positive class: FPR@95 is the share of ID images whose score is at or below the threshold that catches
    95 % of the OOD images. Both AUPR are areas by the trapezoidal rule.

    >>> ood_metrics(np.array([2.0, 3.0, 4.0, 5.0]), np.array([0.0, 1.0, 2.5]))["FPR@95"]
    25.0

    Args:
        id_scores: (N,) scores of ID images (array, tensor or list of any dtype); larger is more in-distribution.
        ood_scores: (M,) scores of OOD images.

    Raises:
        ValueError: An empty array, NaN or infinity; names the side and the count.
    """
    from sklearn import metrics

    id_scores, ood_scores = _checked(id_scores, ood_scores)
    fpr95, area = fpr95_auroc(id_scores, ood_scores)
    scores, is_ood = _all(id_scores, ood_scores), _is_ood(id_scores, ood_scores)
    precision_in, recall_in, _ = metrics.precision_recall_curve(1 - is_ood, scores)
    precision_out, recall_out, _ = metrics.precision_recall_curve(is_ood, -scores)
    areas = (metrics.auc(recall_in, precision_in), metrics.auc(recall_out, precision_out))
    return dict(zip(COLUMNS, (fpr95, area, *(100 * float(part) for part in areas)), strict=False))


def _all(id_scores: np.ndarray, ood_scores: np.ndarray) -> np.ndarray:
    return np.concatenate([id_scores, ood_scores])


def _is_ood(id_scores: np.ndarray, ood_scores: np.ndarray) -> np.ndarray:
    return np.r_[np.zeros(len(id_scores), dtype=int), np.ones(len(ood_scores), dtype=int)]


def score_kept(ascending: np.ndarray, share: float) -> float:
    """Return the largest score that at least ``share`` of the scores reach: ``np.mean(scores >= found) >= share``.

    Args:
        ascending: (N,) scores in ascending order, N > 0.
        share: The share, in (0, 1].
    """
    count = len(ascending)
    kept = max(1, math.floor(share * count))
    # Rounding the product up would ask for 8 of 100 at 0.07: it is 7.000000000000001.
    while kept / count < share:
        kept += 1
    return float(ascending[count - kept])

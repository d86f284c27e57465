"""FPR@95, AUROC, both AUPR and thresholds: the one place that knows them. Needs neither torch nor OpenOOD.

scikit-learn is imported when a metric is asked for: scoring images needs none.
"""

from __future__ import annotations

import math

import numpy as np

COLUMNS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")
"""The columns of OpenOOD's tables, all in percent."""


def roc(id_scores: np.ndarray, ood_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve with OOD as the positive class: the shares (0 to 1) of ID and of OOD images flagged.

    Args:
        id_scores, ood_scores: 1-D, larger is more in-distribution.

    Raises:
        ValueError: an empty array, NaN or infinity; says on which side, and how many.
    """
    from sklearn import metrics

    # Here, where every metric passes by; scikit-learn's own words name neither side.
    for name, values in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        if len(values) == 0:
            raise ValueError(f"{name}: there are none; expected at least one")
        if bad := int(np.count_nonzero(~np.isfinite(values))):
            raise ValueError(
                f"{name}: {bad} of {len(values)} values are NaN or infinite; expected finite numbers"
            )
    flagged_id, flagged_ood, _ = metrics.roc_curve(
        _is_ood(id_scores, ood_scores), -_all(id_scores, ood_scores)
    )
    return flagged_id, flagged_ood


def fpr95_auroc(id_scores: np.ndarray, ood_scores: np.ndarray) -> tuple[float, float]:
    """FPR@95 and AUROC in percent; see :func:`ood_metrics`, also for what it raises."""
    from sklearn import metrics

    flagged_id, flagged_ood = roc(id_scores, ood_scores)
    fpr95 = flagged_id[np.argmax(flagged_ood >= 0.95)]
    return 100 * float(fpr95), 100 * float(metrics.auc(flagged_id, flagged_ood))


def auroc(id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
    """AUROC in percent; raises as :func:`ood_metrics`."""
    return fpr95_auroc(id_scores, ood_scores)[1]


def ood_metrics(id_scores: np.ndarray, ood_scores: np.ndarray) -> dict[str, float]:
    """FPR@95, AUROC, AUPR_IN and AUPR_OUT in percent, as OpenOOD's ``compute_all_metrics`` defines them.

    OOD is the positive class: FPR@95 is the share of in-distribution images whose score is at or below the
    threshold that catches 95 % of the OOD images. Both AUPR are areas by the trapezoidal rule.

    >>> ood_metrics(np.array([2.0, 3.0, 4.0, 5.0]), np.array([0.0, 1.0, 2.5]))["FPR@95"]
    25.0

    Args:
        id_scores, ood_scores: 1-D, larger is more in-distribution.

    Raises:
        ValueError: an empty array, NaN or infinity; says on which side, and how many.
    """
    from sklearn import metrics

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
    """The largest of some scores that at least ``share`` of them reach: ``np.mean(scores >= found) >= share``.

    Args:
        ascending: (N,) the scores in ascending order, N > 0.
        share: within (0, 1].
    """
    count = len(ascending)
    kept = max(1, math.floor(share * count))
    # Rounding the product up would ask for 8 of 100 at 0.07: it is 7.000000000000001.
    while kept / count < share:
        kept += 1
    return float(ascending[count - kept])

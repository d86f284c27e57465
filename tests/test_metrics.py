"""Tests of the OOD metrics."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from openood_adascale.metrics import COLUMNS, auroc, fpr95_auroc, ood_metrics, roc


def test_metrics_equal_their_definitions():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 1000), rng.normal(0, 1, 400)
    fpr, area = fpr95_auroc(inside, outside)
    truth = np.r_[np.zeros(1000), np.ones(400)]
    assert area == pytest.approx(100 * roc_auc_score(truth, -np.r_[inside, outside]))
    threshold = np.sort(outside)[int(0.95 * 400) - 1]
    assert fpr == pytest.approx(100 * (inside <= threshold).mean(), abs=0.2)


@pytest.mark.parametrize("metric", [roc, auroc, fpr95_auroc, ood_metrics])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_counted(metric, bad):
    good, one, two = np.arange(4.0), np.array([bad, 1, 2], "float32"), np.array([bad, 0, bad])
    with pytest.raises(ValueError, match=r"^id_scores: 1 of 3 values are NaN or infinite; expected finite"):
        metric(one, good)
    with pytest.raises(ValueError, match=r"^ood_scores: 2 of 3 values are NaN or infinite; expected finite"):
        metric(good, two)


@pytest.mark.parametrize("metric", [roc, auroc, fpr95_auroc, ood_metrics])
def test_missing_scores_are_named(metric):
    with pytest.raises(ValueError, match=r"^id_scores: no scores; expected"):
        metric(np.array([]), np.arange(4.0))
    with pytest.raises(ValueError, match=r"^ood_scores: no scores; expected"):
        metric(np.arange(4.0), np.array([]))


def test_columns_are_those_of_openood():
    assert COLUMNS == ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")

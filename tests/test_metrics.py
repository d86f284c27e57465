"""FPR@95 and AUROC against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from openood_adascale.metrics import fpr95_auroc


def test_metrics_have_openoods_meaning():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 1000), rng.normal(0, 1, 400)
    fpr, auroc = fpr95_auroc(inside, outside)
    truth = np.r_[np.zeros(1000), np.ones(400)]
    assert auroc == pytest.approx(100 * roc_auc_score(truth, -np.r_[inside, outside]))
    threshold = np.sort(outside)[int(0.95 * 400) - 1]
    assert fpr == pytest.approx(100 * (inside <= threshold).mean(), abs=0.2)

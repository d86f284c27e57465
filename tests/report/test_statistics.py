"""Bootstrap intervals against a naive implementation."""

from __future__ import annotations

import numpy as np
import pytest

from openood_adascale.metrics import fpr95_auroc
from openood_adascale.report.statistics import SortedScores, bootstrap


@pytest.mark.parametrize("decimals", [0, 1, 12], ids=["many ties", "ties", "no ties"])
@pytest.mark.parametrize(("ids", "oods"), [(30, 20), (7, 1), (1, 9), (300, 400)])
def test_weighted_metrics_equal_those_of_repeated_scores(decimals, ids, oods):
    rng = np.random.default_rng(ids)
    scores = {"id": rng.normal(1, 1, ids).round(decimals), "far": rng.normal(0, 1, oods).round(decimals)}
    weights = {key: rng.integers(0, 4, (len(values), 40)).astype(np.uint8) for key, values in scores.items()}
    fpr, auroc = SortedScores(scores).metrics(weights)["far"]
    for column in range(40):
        own, other = (np.repeat(scores[key], weights[key][:, column]) for key in ("id", "far"))
        expected = (np.nan, np.nan)
        if len(own) and len(other):
            # By its definition: scikit-learn's curve can lack a tied point.
            threshold = min(score for score in other if np.mean(other <= score) >= 0.95)
            expected = 100 * np.mean(own <= threshold), fpr95_auroc(own, other)[1]
        np.testing.assert_allclose((fpr[column], auroc[column]), expected, atol=1e-4)


def naive(first, second, resamples=600):
    """Return the resampled AUROC of two methods, drawn with replacement image by image."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(resamples):
        ids, oods = (rng.integers(0, len(first[key]), len(first[key])) for key in ("id", "far"))
        found.append([fpr95_auroc(one["id"][ids], one["far"][oods]) for one in (first, second)])
    return np.array(found)  # (resamples, methods, metrics)


def test_intervals_are_those_of_a_naive_bootstrap():
    rng = np.random.default_rng(0)
    base = {"id": rng.normal(1, 1, 400), "far": rng.normal(0, 1, 300)}
    noisy = {key: values + rng.normal(0, 0.7, len(values)) for key, values in base.items()}
    found = bootstrap({"one": base, "two": noisy}, far=["far"], resamples=2000)
    values = naive(base, noisy)
    expected = {
        (name, metric): (found.interval(name, "far", metric), values[:, place, own])
        for place, name in enumerate(("one", "two"))
        for own, metric in enumerate(("FPR@95", "AUROC"))
    }
    difference = found.difference("one", "two", "far", "AUROC")
    expected["difference"] = difference, values[:, 0, 1] - values[:, 1, 1]
    for name, (interval, resampled) in expected.items():
        ends = np.quantile(resampled, [0.025, 0.975])
        np.testing.assert_allclose(interval, ends, atol=0.2 * np.ptp(ends), err_msg=str(name))
    # Pairing makes the difference more certain than each of its terms.
    assert np.ptp(difference) < np.ptp(found.interval("two", "far", "AUROC"))


def test_equal_methods_are_equal_and_better_ones_are_not():
    rng = np.random.default_rng(0)
    base = {"id": rng.normal(1, 1, 2000), "a": rng.normal(0, 1, 1500), "b": rng.normal(0, 1, 500)}
    scores = {
        "base": base,
        "scaled": {key: 3 * values - 1 for key, values in base.items()},
        "other": {key: values + rng.normal(0, 0.05, len(values)) for key, values in base.items()},
        "worse": {key: values + rng.normal(0, 3, len(values)) for key, values in base.items()},
    }
    found = bootstrap(scores, near=["a", "b"], resamples=500)
    assert found.difference("base", "scaled", "nearood", "AUROC") == (0, 0)
    for row in ("a", "nearood"):
        assert found.equal("base", "other", row, "AUROC")
        assert not found.equal("base", "worse", row, "AUROC")
    mean = np.mean([found.values["base", key, "AUROC"] for key in "ab"], 0)
    np.testing.assert_allclose(found.values["base", "nearood", "AUROC"], mean)


def test_bootstrap_has_a_seed_and_leaves_out_what_is_not_there():
    scores = {"one": {"id": np.arange(30.0), "a": np.arange(20.0)}, "two": {"a": np.arange(20.0)}}
    first, second, other = (bootstrap(scores, ["a", "b"], resamples=70, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.values["one", "a", "AUROC"], second.values["one", "a", "AUROC"])
    assert not np.array_equal(first.values["one", "a", "AUROC"], other.values["one", "a", "AUROC"])
    assert first.interval("two", "a", "AUROC") is first.interval("one", "nearood", "AUROC") is None
    assert not first.equal("one", "two", "a", "AUROC")

"""Tests of the threshold at a true positive rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detector_tester import DetectorTester
from hypothesis import given
from hypothesis import strategies as st
from networks import make_images, make_loader

from openood_adascale import MSP, SCALE, AdaSCALE, BFAct, Energy, OptFS
from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import NotFittedError, SettingError
from openood_adascale.features.collect import collect_statistics
from openood_adascale.metrics import score_kept

FIT, IMAGES = make_images(50, 3), make_images(40, 4, shift=0.7)
numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e300, 1e300))  # many of them equal, or none
shares = st.one_of(
    st.floats(0, 1, exclude_min=True), st.sampled_from([i / 100 for i in range(1, 101)]), st.just(5e-324)
)


@given(st.lists(numbers, min_size=1, max_size=120), shares)
def test_threshold_is_the_largest_score_that_keeps_enough(scores, tpr):
    ordered = np.sort(np.array(scores))
    found = score_kept(ordered, tpr)
    assert np.mean(ordered >= found) >= tpr
    assert found == max(score for score in ordered if np.mean(ordered >= score) >= tpr)


@pytest.mark.parametrize(
    ("count", "tpr", "kept"), [(20, 0.95, 19), (100, 0.07, 7), (100, 0.95, 95), (50, 0.95, 48), (10, 1, 10), (3, 1e-9, 1)]
)  # fmt: skip
def test_decimal_share_is_not_rounded_up(count, tpr, kept):
    assert score_kept(np.arange(count, dtype=np.float64), tpr) == count - kept


@pytest.mark.parametrize("tpr", [0, 95, -0.1, 1.001, float("nan"), None, "most", True])
def test_share_outside_of_0_to_1_is_refused(network, tpr):
    detector = MSP(network).fit_threshold([FIT])
    for ask in (detector.threshold, lambda share: detector.is_ood(IMAGES, share)):
        with pytest.raises(SettingError, match=r"tpr: .* expected a number in \(0, 1\]"):
            ask(tpr)


@pytest.mark.parametrize("name", METHODS)
def test_threshold_is_of_the_images_of_fit_threshold(network, name):
    detector = DetectorTester(name).fit(network, make_images(60, 11))
    assert detector.fit_threshold(make_loader(FIT), progress=False) is detector
    scores = detector.predict_loader(make_loader(FIT), progress=False)[1].astype(np.float64)
    held = detector.validation_scores
    np.testing.assert_array_equal(held, np.sort(scores))
    for tpr in (0.5, 0.95, 1):
        threshold = detector.threshold(tpr)
        assert type(threshold) is float
        assert np.mean(scores >= threshold) >= tpr
        flagged = detector.is_ood(IMAGES, tpr)
        assert torch.equal(flagged, detector.score(IMAGES) < threshold)
    with pytest.raises(ValueError, match="read-only"):
        held[0] = 1
    with pytest.raises(ValueError, match="it yields no images"):
        detector.fit_threshold([])


def test_threshold_without_scores_is_refused(network):
    with pytest.raises(NotFittedError, match="OptFS is not fitted"):
        OptFS(network).fit_threshold([FIT])
    for detector in (MSP(network), BFAct(network).fit([FIT])):
        for ask in (detector.threshold, lambda detector=detector: detector.is_ood(IMAGES)):
            with pytest.raises(NotFittedError, match=r"call fit_threshold\(loader\)"):
                ask()


def test_fit_keeps_the_scores_of_validation_images(network):
    loader = make_loader(FIT)
    detector = AdaSCALE(network).fit(loader, progress=False)
    np.testing.assert_allclose(
        detector.validation_scores,
        detector.fit_threshold(loader, progress=False).validation_scores,
        rtol=1e-6,
    )
    assert len(detector.fit([FIT[:7]]).validation_scores) == 7
    assert len(AdaSCALE(network, num_samples=5).fit([FIT]).validation_scores) == 50
    from_val = BFAct(network, fit_split="val")
    request, inference = from_val.settings.request(), from_val.settings.inference
    statistics = collect_statistics(from_val.extractor, [FIT], request, inference).statistics
    assert len(from_val.fit_statistics(statistics).validation_scores) == 50
    assert BFAct(network).fit_statistics(statistics).validation_scores is None
    # Scores of what was fitted before are none of what is fitted now.
    with pytest.raises(NotFittedError):
        BFAct(network).fit([FIT]).fit_threshold([FIT]).fit([IMAGES]).threshold()


@pytest.mark.parametrize("name", ["scale", "bfact", "adascale"])
def test_search_keeps_the_scores_of_validation_images(network, name):
    tester = DetectorTester(name)
    detector = tester.make(network)
    found = tester.search(detector, FIT, IMAGES)
    want = tester.fit(network, FIT, **found.best_settings.as_dict()).fit_threshold([FIT])
    np.testing.assert_allclose(detector.validation_scores, want.validation_scores, rtol=1e-4)


def test_scores_that_are_not_finite_are_counted(network):
    class Broken(Energy):
        def score_statistics(self, statistics, settings, state):
            classes, scores = super().score_statistics(statistics, settings, state)
            return classes, scores.where(torch.arange(len(scores)) > 2, float("nan"))

    with pytest.raises(ValueError, match="scores: 3 of 50 are NaN or infinite"):
        Broken(network).fit_threshold([FIT])


def test_candidate_whose_scores_are_not_finite_is_named(network):
    class Broken(SCALE):
        def score_statistics(self, statistics, settings, state):
            classes, scores = super().score_statistics(statistics, settings, state)
            return classes, scores * float("nan")

    with pytest.raises(ValueError, match=r"candidate FixedPercentileSettings\(.* NaN or infinite"):
        Broken(network).search([FIT], [IMAGES])

"""Tests of feature requests and feature statistics."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from networks import activations, make_images

from openood_adascale import AdaSCALE
from openood_adascale.errors import MissingFeatureError
from openood_adascale.features.collect import collect_statistics
from openood_adascale.features.extractor import FeatureExtractor
from openood_adascale.features.head import LinearHead
from openood_adascale.features.statistics import FeatureRequest, Features, FeatureStatistics, Perturbation

TRIVIAL = Perturbation("trivial", 0.05, 0.5)
RANDOM = Perturbation("random", 0.1, 0.2)


percents = st.one_of(st.floats(0.01, 100), st.sampled_from([1.0, 5.0, 50.0, 100.0]))
percentiles = st.one_of(st.floats(0.01, 99.99), st.sampled_from([50.0, 80.0, 85.0, 99.0]))


def statistics_of(a, perturbed, request):
    count, size = a.shape
    features = Features(
        torch.zeros(count, 2), torch.zeros(count, dtype=torch.int64), torch.tensor(a),
        {p: torch.tensor(rows) for p, rows in perturbed.items()},
        LinearHead(torch.zeros(2, size), torch.zeros(2)),
    )  # fmt: skip
    return FeatureStatistics.from_features(features, request)


@given(activations(), st.data())
def test_oodness_equals_reference(a, data):
    moved = data.draw(hnp.arrays(np.float32, a.shape, elements=st.floats(-50, 50, width=32)))
    k1, k2 = (data.draw(st.lists(percents, min_size=1, max_size=3, unique=True)) for _ in range(2))
    lmbda = data.draw(st.floats(0, 100))
    statistics = statistics_of(a, {TRIVIAL: moved}, FeatureRequest(None, tuple(k1), tuple(k2), (TRIVIAL,)))
    rows = list(zip(a.astype(float), moved.astype(float), strict=True))
    for one, other in zip(k1, k2, strict=False):
        want = [reference.oodness(*pair, one, other, lmbda) for pair in rows]
        got = statistics.oodness(TRIVIAL, one, other, lmbda).numpy()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@given(activations(), st.lists(percentiles, min_size=1, max_size=4))
def test_scaling_factors_of_a_range_equal_reference(a, chosen):
    statistics = statistics_of(a, {}, FeatureRequest((min(chosen), max(chosen))))
    for percentile in chosen:
        want = [reference.factor(row, percentile) for row in a.astype(float)]
        np.testing.assert_allclose(statistics.scaling_factor(percentile).numpy(), want, rtol=1e-6)
        each = torch.full((len(a),), percentile, dtype=torch.float64)
        assert statistics.scaling_factor(percentile).dtype == torch.float64
        assert torch.equal(statistics.scaling_factor(each), statistics.scaling_factor(percentile))


def test_factor_of_each_tenth_of_a_percent_equals_reference():
    a = np.random.default_rng(0).random((1, 1000), np.float32)
    statistics = statistics_of(a, {}, FeatureRequest((0.1, 99.9)))
    for percentile in np.linspace(0.1, 99.9, 499).round(1):
        found = float(statistics.scaling_factor(float(percentile)))
        assert found == pytest.approx(reference.factor(a[0].astype(float), percentile), rel=1e-6), percentile


@given(activations(), st.data())
def test_statistics_of_a_part_are_a_part_of_the_statistics(a, data):
    request = FeatureRequest((60, 90), (5.0,), (50.0,), (TRIVIAL,), True)
    whole = statistics_of(a, {TRIVIAL: a + 1}, request)
    cut = data.draw(st.integers(0, len(a)))
    parts = [statistics_of(rows, {TRIVIAL: rows + 1}, request) for rows in (a[:cut], a[cut:])]
    assert len(whole[:cut]) == cut
    for name, tensor in FeatureStatistics.cat(parts).parts.items():
        assert torch.equal(tensor, whole.parts[name])


requests = st.builds(
    lambda ends, k1, k2, perturbations, kept: FeatureRequest(
        tuple(sorted(ends)) if ends else None, tuple(sorted(set(k1))), tuple(sorted(set(k2))), tuple(perturbations), kept
    ),
    st.none() | st.tuples(percentiles, percentiles), st.lists(percents, max_size=2), st.lists(percents, max_size=2),
    st.lists(st.sampled_from([TRIVIAL, RANDOM]), unique=True), st.booleans(),
)  # fmt: skip


@given(requests, requests)
def test_union_covers_its_parts(one, other):
    union = FeatureRequest.union([one, other])
    assert union.covers(one)
    assert union.covers(other)
    assert FeatureRequest.union([union, one]) == union
    assert FeatureRequest.union([]) == FeatureRequest()
    assert one.covers(FeatureRequest())
    assert one.covers(other) == (FeatureRequest.union([one, other]) == FeatureRequest.union([one]))


def test_irrelevant_settings_make_no_other_perturbation():
    assert (
        Perturbation("all", 0.05, 0.5) == Perturbation("all", 0.1, 0.5) != Perturbation("salient", 1.0, 0.5)
    )
    assert Perturbation("trivial", 0.05, 0.5, seed=1) == Perturbation("trivial", 0.05, 0.5, seed=2)
    assert Perturbation("random", 0.05, 0.5, seed=1) != Perturbation("random", 0.05, 0.5, seed=2)


def test_statistics_without_what_was_not_requested_say_so(network):
    statistics = FeatureExtractor(network).statistics(make_images(4, 0), FeatureRequest((60, 90)))
    for ask in (
        lambda: statistics.activation, lambda: statistics.oodness(TRIVIAL, 1, 5, 10), lambda: statistics.part("more"),
    ):  # fmt: skip
        with pytest.raises(MissingFeatureError, match="is missing; the request was"):
            ask()
    plain = FeatureExtractor(network).statistics(make_images(4, 0), FeatureRequest())
    with pytest.raises(MissingFeatureError, match="'total'"):
        plain.scaling_factor(80)


def test_united_statistics_give_the_scores_of_separate_ones(network, id_images):
    settings = [
        {"percentile": (60, 70)},
        {"k1": 50, "k2": 60, "pixels": "random"},
        {"k2": 1, "o": 0.2, "variant": "L"},
    ]
    detectors = [AdaSCALE(network, **chosen) for chosen in settings]
    request = FeatureRequest.union(detector.settings.request() for detector in detectors)
    extractor, inference = detectors[0].extractor, detectors[0].settings.inference
    statistics = collect_statistics(extractor, [id_images], request, inference).statistics
    for detector in detectors:
        detector.fit_statistics(statistics)
        _, scores = detector.score_statistics(statistics, detector.settings, detector.state)
        want = AdaSCALE(network, **detector.settings.as_dict()).fit([id_images]).score(id_images)
        torch.testing.assert_close(scores, want, rtol=1e-4, atol=1e-4)


def test_statistics_hold_no_more_than_the_request(network):
    """The statistics of an image do not grow with the candidates, and a part does not keep the whole alive."""
    detector = AdaSCALE(network)
    request = FeatureRequest.union(settings.request() for settings in detector.candidates())
    statistics = collect_statistics(
        detector.extractor, [make_images(20, 0)], request, detector.settings.inference
    ).statistics
    kept = 64 - round(64 * 0.60) - (64 - round(64 * 0.99)) + 1
    assert [tensor[0].numel() for tensor in statistics.parts.values()] == [5, 1, 1, kept, 1, 1]
    assert statistics[3:5].cpu().logits.untyped_storage().nbytes() == 2 * 5 * 4
    moved = statistics.to(torch.device("cpu", 0))
    torch.testing.assert_close(moved.parts, statistics.parts)
    moved = statistics.to(torch.device("meta"))
    assert all(tensor.is_meta for tensor in (*moved.parts.values(), *moved.head))
    assert not statistics.logits.requires_grad

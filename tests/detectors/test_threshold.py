"""The threshold that keeps a share of the validation images, and whose scores it is of."""

import copy
import pickle

import networks as tv
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TinyNet, make_images, make_loader

from openood_adascale import AdaSCALE, Energy
from openood_adascale.detectors.bfact import BFAct
from openood_adascale.detectors.calibration import threshold_of
from openood_adascale.detectors.lts import LTS
from openood_adascale.detectors.msp import MSP
from openood_adascale.detectors.optfs import OptFS
from openood_adascale.detectors.scale import SCALE
from openood_adascale.errors import SettingError
from openood_adascale.evidence.collect import collect
from openood_adascale.evidence.plan import Plan

METHODS = [MSP, Energy, SCALE, LTS, BFAct, OptFS, AdaSCALE]
UNLEARNT = [MSP, Energy, SCALE, LTS]
numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e300, 1e300))  # many of them equal, or none
shares = st.one_of(
    st.floats(0, 1, exclude_min=True), st.sampled_from([i / 100 for i in range(1, 101)]), st.just(5e-324)
)


@given(st.lists(numbers, min_size=1, max_size=120), shares)
def test_the_threshold_is_the_largest_score_that_keeps_enough(scores, tpr):
    ordered = np.sort(np.array(scores))
    found = threshold_of(ordered, tpr)
    assert np.mean(ordered >= found) >= tpr
    enough = [score for score in ordered if np.mean(ordered >= score) >= tpr]
    assert found == max(enough)


@given(st.lists(numbers, min_size=1, max_size=120), st.integers(1, 128).map(lambda k: k / 128))
def test_it_is_numpys_quantile(scores, tpr):
    """The smallest of the negated scores up to which the share lies; a binary fraction, so that no rounding decides."""
    ordered = np.sort(np.array(scores))
    assert threshold_of(ordered, tpr) == -np.quantile(-ordered, tpr, method="inverted_cdf")


@pytest.mark.parametrize(
    ("count", "tpr", "kept"), [(20, 0.95, 19), (100, 0.07, 7), (100, 0.95, 95), (50, 0.95, 48), (10, 1, 10), (3, 1e-9, 1)]
)  # fmt: skip
def test_decimal_shares_are_not_rounded_up(count, tpr, kept):
    scores = np.arange(count, dtype=np.float64)
    assert threshold_of(scores, tpr) == count - kept


@pytest.mark.parametrize("tpr", [0, 95, -0.1, 1.001, float("nan"), None, "most", True])
def test_a_share_that_is_none_is_refused(network, id_images, tpr):
    detector = MSP(network).calibrate([id_images])
    with pytest.raises(SettingError, match=r"tpr: .* expected a number in \(0, 1\]"):
        detector.threshold(tpr)
    with pytest.raises(SettingError, match="tpr"):
        detector.is_ood(id_images, tpr)


@pytest.mark.parametrize("method", METHODS)
def test_calibrated_on_a_loader(network, id_images, ood_images, method):
    detector = method(network).fit(make_loader(make_images(60, 11)))
    assert detector.calibrate(make_loader(id_images)) is detector
    scores = detector.predict_loader(make_loader(id_images))[1].astype(np.float64)
    held = detector.validation_scores
    assert held is not None
    assert held.dtype == np.float64
    np.testing.assert_array_equal(held, np.sort(scores))
    for tpr in (0.5, 0.95, 1):
        threshold = detector.threshold(tpr)
        assert type(threshold) is float
        assert np.mean(scores >= threshold) >= tpr
        flagged = detector.is_ood(ood_images, tpr)
        assert (flagged.shape, flagged.dtype) == ((40,), torch.bool)
        np.testing.assert_array_equal(flagged, detector.score(ood_images) < threshold)
    assert detector.is_ood(id_images).double().mean() <= 0.06
    with pytest.raises(ValueError):  # what is remembered is not to be written to
        held[0] = 1


@pytest.mark.parametrize("method", METHODS)
def test_without_scores(network, id_images, method):
    detector = method(network)
    if method not in UNLEARNT:
        with pytest.raises(RuntimeError, match=r"is not fitted: call fit\(loader\)"):
            detector.threshold()
        with pytest.raises(RuntimeError, match="is not fitted"):
            detector.calibrate([id_images])
    detector.fit([id_images])
    if method is AdaSCALE:
        detector.validation = None
    assert detector.validation_scores is None
    for ask in (detector.threshold, lambda: detector.is_ood(id_images)):
        with pytest.raises(RuntimeError, match=rf"{method.__name__} .* call calibrate\(loader\)"):
            ask()


@pytest.mark.parametrize("method", UNLEARNT)
def test_what_learns_nothing_still_looks_at_no_image(network, method):
    class Untouchable:
        def __iter__(self):
            raise AssertionError("an image was looked at")

    detector = method(network).fit(Untouchable())
    assert not network.calls
    assert detector.validation_scores is None
    with pytest.raises(ValueError, match="it yields no images"):
        detector.calibrate([])


def test_fit_remembers_the_images_that_it_learns_from(network, id_images):
    loader = make_loader(id_images)
    detector = AdaSCALE(network).fit(loader)
    fitted = detector.validation_scores
    np.testing.assert_allclose(fitted, detector.calibrate(loader).validation_scores, rtol=1e-6)
    detector.fit(make_loader(id_images[:7]))
    assert len(detector.validation_scores) == 7
    some = AdaSCALE(network, num_samples=5).fit(loader)  # 5 are learnt from, all are judged
    assert len(some.validation_scores) == 50


@pytest.mark.parametrize("method", [SCALE, BFAct, AdaSCALE])
def test_a_search_remembers_the_known_images(network, id_images, ood_images, method):
    sweep = {"percentile_list": [[60, 80], [70, 90]] if method is AdaSCALE else [70, 80, 90]}
    settings = {"learn_from": "val"} if method is BFAct else {}
    detector = method(network, **settings)
    found = detector.search(make_loader(id_images), make_loader(ood_images), sweep)
    want = method(network, found.settings).fit(make_loader(id_images)).calibrate(make_loader(id_images))
    np.testing.assert_allclose(detector.validation_scores, want.validation_scores, rtol=1e-6)
    assert detector.threshold(0.9) == pytest.approx(want.threshold(0.9))


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_streams_remember_only_validation_images(network, train_images, id_images, method):
    detector = method(network)
    evidence = collect(
        detector.reader, [id_images], Plan(activations=True), detector.settings.execution
    ).evidence
    assert detector.fit_evidence(evidence).validation_scores is None
    assert method(network).fit([train_images]).validation_scores is None
    from_val = method(network, learn_from="val").fit_evidence(evidence)
    assert len(from_val.validation_scores) == 50
    # Scores of what was learnt before are none of what is learnt now.
    detector.calibrate([id_images]).fit([train_images])
    with pytest.raises(RuntimeError, match="remembers no scores"):
        detector.threshold()


def test_evidence_that_tells_no_scores_is_learnt_from(network, id_images):
    """Q' alone is enough to learn, but not to judge."""
    detector = AdaSCALE(network)
    plan = detector.settings.plan()
    part = Plan(None, plan.k1, plan.k2, plan.perturbations)
    evidence = collect(detector.reader, [id_images], part, detector.settings.execution).evidence
    detector.fit_evidence(evidence)
    assert detector.validation_scores is None
    detector.score(id_images)


def test_scores_that_are_not_finite(network, id_images):
    class Broken(Energy):
        def judge(self, evidence, settings, state):
            pred, scores = super().judge(evidence, settings, state)
            return pred, scores.where(torch.arange(len(scores)) > 2, float("nan"))

    with pytest.raises(ValueError, match="scores: 3 of 50 are NaN or infinite"):
        Broken(network).calibrate([id_images])


# Scores of another network or other settings.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", ["network", "head", "weights", "data"])
def test_another_network_is_noticed(network, id_images, method, change):
    detector = method(network).fit([id_images]).calibrate([id_images])
    before = detector.is_ood(id_images)
    if change == "network":
        torch.manual_seed(5)
        detector.network = TinyNet().eval()
    elif change == "head":
        network.fc = torch.nn.Linear(64, 5)
    elif change == "weights":
        with torch.no_grad():
            network.features[0].weight.mul_(1.01)
    else:  # seen by those who look at all weights
        network.fc.weight.data.mul_(3)
    if method in UNLEARNT:
        detector.score(
            id_images
        )  # it serves another network, whose scores are not those that were remembered
    if change != "data":
        with pytest.raises(RuntimeError, match="network: its layers or weights are not those"):
            detector.is_ood(id_images)
    with pytest.raises(RuntimeError, match="network: its layers or weights are not those"):
        detector.threshold()
    assert detector.validation_scores is None
    detector.fit([id_images]).calibrate([id_images])
    assert detector.is_ood(id_images).shape == before.shape


@pytest.mark.parametrize("method", METHODS)
def test_the_same_network_elsewhere_is_served(network, id_images, method):
    detector = method(network).fit([id_images]).calibrate([id_images])
    want, flagged = detector.threshold(), detector.is_ood(id_images)
    detector.network = copy.deepcopy(network)
    for one in (detector, copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert one.threshold() == want
        assert torch.equal(one.is_ood(id_images), flagged)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        (MSP, {"precision": "bfloat16"}), (SCALE, {"percentile": 70}), (BFAct, {"order": 5}), (BFAct, {"percentile": 60}),
        (OptFS, {"score": "energy"}), (AdaSCALE, {"variant": "L"}), (AdaSCALE, {"percentile": (60, 90)}),
    ],
)  # fmt: skip
def test_other_settings_are_noticed(network, id_images, method, change):
    detector = method(network).fit([id_images]).calibrate([id_images])
    before, want = detector.settings, detector.threshold()
    detector.settings = before.replace(**change)
    name = next(iter(change))
    for ask in (detector.threshold, lambda: detector.is_ood(id_images)):
        with pytest.raises(
            RuntimeError, match=rf"settings: {name} is .* and was .* call calibrate\(loader\)"
        ):
            ask()
    assert detector.validation_scores is None
    detector.settings = before
    assert detector.threshold() == want
    detector.settings = before.replace(**change, memory_format="contiguous")
    np.testing.assert_allclose(
        detector.calibrate([id_images]).threshold(),
        method(network, detector.settings).fit([id_images]).calibrate([id_images]).threshold(),
        rtol=1e-5,  # it was fitted with the images otherwise in memory
    )


def test_how_images_lie_in_memory_is_no_other_setting(network, id_images):
    detector = AdaSCALE(network).fit([id_images])
    want = detector.threshold()
    detector.settings = detector.settings.replace(
        memory_format="contiguous", seed=3
    )  # the seed enters nothing
    assert detector.threshold() == want


@pytest.mark.parametrize("method", METHODS)
def test_a_counter_in_the_network_is_no_change(id_images, method):
    torch.manual_seed(0)
    network = tv.Counting().eval()
    detector = method(network).fit([id_images]).calibrate([id_images])
    want = detector.is_ood(id_images)
    network(id_images)
    assert torch.equal(detector.is_ood(id_images), want)
    detector.threshold()

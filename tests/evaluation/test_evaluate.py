"""OpenOOD's protocol without OpenOOD: tables, searches, passes, and arguments that are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from networks import HEAD, Merging, TinyNet, make_images, make_loader

from openood_adascale import MSP, SCALE, AdaSCALE, Benchmark, evaluate
from openood_adascale.detectors.base import Detector
from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import SettingError
from openood_adascale.evaluation.accuracy import accuracy
from openood_adascale.metrics import COLUMNS, ood_metrics

TEST = 30 + 20 + 25 + 20
"""Test images."""


class Energy:
    """An object with OpenOOD's postprocessor methods."""

    temperature = 1.0

    def setup(self, net, id_loader_dict, ood_loader_dict):
        assert set(ood_loader_dict) == {"val", "near", "far"}
        assert set(id_loader_dict) == {"train", "val", "test"}

    def inference(self, net, loader, progress=True):
        with torch.no_grad():
            z = torch.cat([net(images) for images, _ in loader])
        score = z.logsumexp(1).numpy()
        with np.errstate(divide="ignore"):
            return z.argmax(1).numpy(), score / self.temperature, np.zeros(len(z), int)


class Searched(Energy):
    """With a search."""

    APS_mode = True
    hyperparam_search_done = False

    def __init__(self, *temperatures):
        self.args_dict = {"temperature_list": list(temperatures)}

    def set_hyperparam(self, hyperparam):
        (self.temperature,) = hyperparam

    def get_hyperparam(self):
        return [self.temperature]


class WithNetwork(Energy):
    def __init__(self, network):
        self.network = network

    def inference(self, net, loader, progress=True):
        assert net is self.network
        return super().inference(net, loader, progress)


def passes(network, call):
    """Return the number of images that went through the network during a call, and its result."""
    network.calls.clear()
    found = call()
    return sum(network.calls), found


# Tables.


def test_table_has_rows_for_sets_and_their_means(network, data):
    result = evaluate(AdaSCALE(network), data, progress=False)
    assert list(result.table.index) == ["a", "b", "nearood", "c", "farood"]
    assert tuple(result.table.columns) == COLUMNS
    near = result.table.loc[["a", "b"]].mean()
    pd.testing.assert_series_equal(result.table.loc["nearood"], near, check_names=False)
    assert len(result.search_results) == 36
    assert {name: len(s) for name, s in result.scores.items()} == {"id": 30, "a": 20, "b": 25, "c": 20}
    want = ood_metrics(result.scores["id"], result.scores["a"])
    assert result.table.loc["a", "AUROC"] == want["AUROC"]


@pytest.mark.parametrize("side", ["near", "far"])
def test_near_or_far_sets_alone_give_their_rows(network, data, side):
    want = evaluate(MSP(network), data)
    sets, other = getattr(data, side), "far" if side == "near" else "near"
    for more in ({}, {other: {}}):
        one = Benchmark(data.test, **{side: sets}, **more)
        found = evaluate({"msp": MSP(network), "p": Energy()}, one, network)
        pd.testing.assert_frame_equal(found["msp"].table, want.table.loc[[*sets, f"{side}ood"]])
        assert list(found["p"].table.index) == [*sets, f"{side}ood"]


def test_full_spectrum_needs_covariate_shifted_sets(network, data):
    results = {fs: evaluate(MSP(network), data, full_spectrum=fs) for fs in (False, True)}
    assert {fs: found.scheme for fs, found in results.items()} == {False: "ood", True: "fsood"}
    assert [len(found.scores["id"]) for found in results.values()] == [30, 40]
    assert evaluate(Energy(), data, network, full_spectrum=True).scheme == "fsood"
    data.covariate_shift = {}
    network.calls.clear()
    for method in (MSP(network), {"one": MSP(network)}, Energy()):
        with pytest.raises(SettingError, match=r"full_spectrum: True .*benchmark\.covariate_shift"):
            evaluate(method, data, network, full_spectrum=True)
    assert not network.calls


def test_accuracy_is_that_of_the_network_in_eval_mode(network, data):
    images, labels = data.test.dataset.tensors
    with torch.no_grad():
        want = (network(images).argmax(1) == labels).double().mean() * 100
    network.train()
    assert accuracy(network, data.test) == pytest.approx(float(want))
    assert network.training


# Searches.


def test_settings_of_a_fitted_detector_are_kept(network, data):
    fitted = AdaSCALE(network, percentile=(61, 62)).fit(data.val)
    assert evaluate(fitted, data, progress=False).search_results is None
    assert fitted.settings.percentile == (61, 62)
    assert evaluate(fitted, data, search=True, progress=False).search_results is not None


def test_sweep_is_searched_also_by_a_fitted_detector(network, data):
    fitted = AdaSCALE(network).fit(data.val)
    sweep = {"percentile_list": [[61, 62], [70, 90]]}
    assert len(evaluate(fitted, data, sweep=sweep, progress=False).search_results) == 2
    for method, more, match in [
        (fitted, {"search": False}, "search=False"),
        (Energy(), {}, "Energy"),
        ({"one": SCALE(network)}, {}, "several detectors, each of which"),
    ]:
        with pytest.raises(SettingError, match=rf"sweep: .* expected None with {match}"):
            evaluate(method, data, network, sweep=sweep, **more)
    with pytest.raises(SettingError, match=r"postprocessor_sweep: \{\}"):
        evaluate(fitted, data, sweep={})


def test_missing_loader_raises_before_any_pass(network, data):
    with pytest.raises(ValueError, match=r"benchmark\.train: None"):
        evaluate(everything(network), data, progress=False)
    data.ood_val = None
    with pytest.raises(ValueError, match=r"benchmark\.ood_val: None"):
        evaluate(AdaSCALE(network), data)
    assert not network.calls
    assert evaluate(AdaSCALE(network), data, search=False, progress=False).search_results is None
    data.val = None
    with pytest.raises(ValueError, match=r"benchmark\.val: None"):
        evaluate(AdaSCALE(network), data, search=False)
    assert "nearood" in evaluate(MSP(network), data, progress=False).table.index


class NotANumber(Detector):
    """A method whose scores are NaN for one of its two settings."""

    settings_class = AdaSCALE.settings_class

    def score_statistics(self, statistics, settings, state):
        score, pred = statistics.logits.double().max(1)
        return pred, torch.full_like(score, torch.nan) if settings.k1 == 2 else score


def test_scores_that_are_not_finite_are_named_with_the_candidate(network, data):
    with pytest.raises(ValueError, match=r"k1=2\.0.*id_scores: 50 of 50 values are NaN or infinite"):
        evaluate(NotANumber(network), data, sweep={"k1_list": [1, 2]}, progress=False)
    found = evaluate(NotANumber(network, k1=1), data, search=False, progress=False)
    assert np.isfinite(found.scores["id"]).all()
    with pytest.raises(ValueError, match=r"candidate \[0\.0\]: id_scores: 50 of 50 values are NaN"):
        evaluate(Searched(1.0, 0.0), data, network, progress=False)


def test_postprocessor_is_searched_as_openood_does(network, data):
    method = Searched(1.0, 10.0, 1000.0)
    network.train()
    result = evaluate(method, data, network, progress=False)
    assert network.training
    assert method.hyperparam_search_done
    assert list(result.search_results["temperature"]) == [1.0, 10.0, 1000.0]
    best = result.search_results["auroc"].idxmax()
    assert method.temperature == result.search_results.loc[best, "temperature"]


# Passes.


def everything(network):
    return {name: method.detector(network, **method.defaults) for name, method in METHODS.items()}


def test_one_pass_serves_all_methods(network, data):
    """The network sees each image as often as for AdaSCALE alone, accuracy included."""
    data.train = make_loader(make_images(60, 12))
    alone, _ = passes(network, lambda: evaluate(AdaSCALE(network), data, progress=False))
    together, results = passes(network, lambda: evaluate(everything(network), data, progress=False))
    images = 2 * (50 + 40) + 2 * TEST
    assert alone == images + HEAD
    # The methods that are fitted on training images share one pass over them; all share its perturbed one.
    assert together == images + 60 + HEAD
    assert list(results) == list(METHODS)
    for name, detector in everything(network).items():
        want, got = evaluate(detector, data, progress=False), results[name]
        np.testing.assert_allclose(got.table.to_numpy(), want.table.to_numpy(), atol=1e-6)
        for key, scores in want.scores.items():
            np.testing.assert_allclose(got.scores[key], scores, rtol=1e-5)
        if want.search_results is None:
            assert got.search_results is None
        else:
            pd.testing.assert_frame_equal(got.search_results, want.search_results)
        assert (got.near, got.far) == (("a", "b"), ("c",))


def test_accuracy_is_that_of_the_float32_network(network, data):
    torch.manual_seed(3)
    other = TinyNet().eval()
    detectors = {"half": MSP(network, precision="bfloat16"), "one": MSP(network), "other": AdaSCALE(other)}
    results = evaluate(detectors, data, progress=False)
    results["alone"] = evaluate(MSP(network, precision="bfloat16"), data, progress=False)
    assert list(results) == ["half", "one", "other", "alone"]
    for name, result in results.items():
        want = accuracy(other if name == "other" else network, data.test)
        assert result.table.loc["a", "ACC"] == pytest.approx(want), name


def test_postprocessors_share_the_accuracy_of_detectors(network, data):
    methods = {"p": Energy(), "one": MSP(network), "q": Energy()}
    seen, results = passes(network, lambda: evaluate(methods, data, network, progress=False))
    assert seen == HEAD + 3 * TEST  # ACC takes no pass of its own
    assert list(results) == list(methods)
    for name, method in methods.items():
        want = evaluate(method, data, network, progress=False)
        pd.testing.assert_frame_equal(results[name].table, want.table)
        np.testing.assert_array_equal(results[name].scores["c"], want.scores["c"])


def test_network_whose_eval_mode_computes_otherwise(data):
    torch.manual_seed(0)
    network = Merging()
    for method, more in ((Energy(), network), (MSP(network), None)):
        want = evaluate(method, data, more if more is None else network.eval(), progress=False).table
        network.train()
        pd.testing.assert_frame_equal(evaluate(method, data, more, progress=False).table, want)


# Arguments.


def test_method_is_evaluated_with_its_own_network_only(network, data):
    other = TinyNet().eval()
    brought = WithNetwork(other)
    for method, given in (
        (MSP(network), other),
        ({"one": MSP(network)}, other),
        ({"other": MSP(other), "one": MSP(network)}, other),
        (brought, network),
        ({"other": brought}, network),
    ):
        with pytest.raises(TypeError, match=r"network: this TinyNet is not the one that .*expected None"):
            evaluate(method, data, given)
    assert network.calls == other.calls == []
    want = evaluate(MSP(network), data).table
    assert evaluate({"one": MSP(network)}, data, network)["one"].table.equals(want)
    beside = evaluate({"one": MSP(network), "other": brought}, data, progress=False)
    assert beside["other"].table.equals(evaluate(brought, data, progress=False).table)
    assert beside["other"].table["ACC"].iloc[0] != pytest.approx(want["ACC"].iloc[0])


def test_mappings_that_cannot_be_evaluated_are_refused(network, data):
    for methods, kind, match in [
        ({"one": MSP(network), "p": Energy()}, TypeError, "network: None is not allowed; Energy has none"),
        (
            {"one": MSP(network), "p": {}},
            TypeError,
            "method: 'p' is a dict; expected a Detector, or an object",
        ),
        ({"MSP": MSP}, TypeError, "method: 'MSP' is the class MSP; expected a Detector"),
        ({1: MSP(network)}, TypeError, r"method: the name 1 .*expected text"),
        ({}, SettingError, r"method: \{\} .*at least one"),
        (object(), TypeError, "network: None"),
    ]:
        with pytest.raises(kind, match=match):
            evaluate(methods, data)
    assert not network.calls


def test_ood_sets_that_cannot_be_used_are_refused(data):
    one = data.far["c"]
    for sets, match in [
        ({}, r"near, far: None .*at least one OOD set"),
        ({"near": {}, "far": {}}, "near, far: None"),
        ({"near": [], "far": data.far}, r"near: \[\] .*OOD sets"),
        ({"near": data.near, "far": {**data.far, "a": one}}, "far: a set's name: 'a'"),
        *(({"near": {name: one}}, "near: a set's name: ") for name in ("id", "nearood", "farood", 5)),
        ({"far": {"c": one, "id": one}}, "far: a set's name: 'id'"),
    ]:
        with pytest.raises(SettingError, match=match):
            Benchmark(data.test, **sets)

"""What `evaluate` is given: what it refuses, and that the order of several detectors makes no difference."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import HEAD, TinyNet

from openood_adascale.detectors.adascale import AdaSCALE
from openood_adascale.detectors.base import Detector
from openood_adascale.detectors.msp import MSP
from openood_adascale.detectors.scale import SCALE
from openood_adascale.errors import SettingError
from openood_adascale.evaluation.benchmark import Benchmark
from openood_adascale.evaluation.evaluate import evaluate


class Postprocessor:
    """An object with OpenOOD's postprocessor methods."""

    def setup(self, net, id_loader_dict, ood_loader_dict):
        """There is nothing to learn."""

    def inference(self, net, loader, progress=True):
        with torch.no_grad():
            z = torch.cat([net(images) for images, _ in loader])
        return z.argmax(1).numpy(), z.logsumexp(1).numpy(), np.zeros(len(z), int)


def test_a_detector_is_evaluated_with_its_own_network_alone(network, data):
    other = TinyNet().eval()
    for method in (MSP(network), {"one": MSP(network)}, {"other": MSP(other), "one": MSP(network)}):
        with pytest.raises(TypeError, match=r"network: .* is not the one that MSP .*expected None"):
            evaluate(method, data, other)
    assert network.calls == other.calls == []
    want = evaluate(MSP(network), data).table
    assert evaluate(MSP(network), data, network).table.equals(want)
    assert evaluate({"one": MSP(network)}, data, network)["one"].table.equals(want)


def test_full_spectrum_needs_covariate_shifted_sets(network, data):
    results = {fs: evaluate(MSP(network), data, full_spectrum=fs) for fs in (False, True)}
    assert {fs: found.scheme for fs, found in results.items()} == {False: "ood", True: "fsood"}
    assert evaluate(Postprocessor(), data, network, full_spectrum=True).scheme == "fsood"
    data.covariate_shift = {}
    network.calls.clear()
    for method in (MSP(network), {"one": MSP(network)}, Postprocessor()):
        with pytest.raises(SettingError, match=r"full_spectrum: True .*benchmark\.covariate_shift"):
            evaluate(method, data, network, full_spectrum=True)
    assert not network.calls


def test_mappings_that_cannot_be_evaluated(network, data):
    with pytest.raises(TypeError, match=r"network: None is not allowed; Postprocessor has none of its own"):
        evaluate({"one": MSP(network), "p": Postprocessor()}, data)
    with pytest.raises(
        TypeError, match="method: 'p' is a dict; expected a Detector, or an object with OpenOOD's"
    ):
        evaluate({"one": MSP(network), "p": {}}, data, network)
    with pytest.raises(TypeError, match="method: 'p' is the class Postprocessor; expected a Detector"):
        evaluate({"p": Postprocessor}, data, network)
    with pytest.raises(TypeError, match="method: 'MSP' is the class MSP; expected a Detector"):
        evaluate({"MSP": MSP}, data)
    with pytest.raises(TypeError, match=r"method: the name 1 .*expected text"):
        evaluate({1: MSP(network)}, data)
    with pytest.raises(SettingError, match=r"method: \{\} .*at least one"):
        evaluate({}, data)
    with pytest.raises(SettingError, match=r"sweep: .* expected None with several detectors, each of which"):
        evaluate({"one": SCALE(network)}, data, sweep={"percentile_list": [80, 90]})
    assert not network.calls


def test_postprocessors_stand_beside_detectors(network, data):
    """With the one network, and with the accuracy that a detector's pass has given already."""
    methods = {"p": Postprocessor(), "one": MSP(network), "q": Postprocessor()}
    network.calls.clear()
    results = evaluate(methods, data, network, progress=False)
    test = 30 + 20 + 25 + 20
    assert sum(network.calls) == HEAD + 3 * test  # ACC takes no pass of its own
    assert list(results) == list(methods)
    for name, method in methods.items():
        want = evaluate(method, data, network, progress=False)
        assert results[name].table.equals(want.table), name
        np.testing.assert_array_equal(results[name].scores["c"], want.scores["c"])


class WithNetwork(Postprocessor):
    def __init__(self, network):
        self.network = network

    def inference(self, net, loader, progress=True):
        assert net is self.network
        return super().inference(net, loader, progress)


def test_a_postprocessor_may_bring_its_network(network, data):
    other = TinyNet().eval()
    method = WithNetwork(other)
    alone = evaluate(method, data, progress=False)
    beside = evaluate({"one": MSP(network), "other": method}, data, progress=False)
    assert beside["other"].table.equals(alone.table)
    assert alone.table["ACC"].iloc[0] != pytest.approx(beside["one"].table["ACC"].iloc[0])
    for given in (method, {"other": method}):
        with pytest.raises(TypeError, match="network: this TinyNet is not the one that WithNetwork has"):
            evaluate(given, data, network)


def test_the_order_of_precisions_makes_no_difference(network, data):
    """ACC is the float32 network's: its pass gives it, whichever detector is named first."""

    def passes(*precisions):
        network.calls.clear()
        results = evaluate({name: MSP(network, precision=name) for name in precisions}, data, progress=False)
        assert list(results) == list(precisions)
        return sum(network.calls)

    assert passes("bfloat16", "float32") == passes("float32", "bfloat16")


class NotANumber(Detector):
    """A method whose scores are NaN for one of its two settings."""

    settings_class = AdaSCALE.settings_class

    def score_statistics(self, statistics, settings, state):
        score, pred = statistics.logits.double().max(1)
        return pred, torch.full_like(score, torch.nan) if settings.k1 == 2 else score


def test_scores_that_are_not_finite_are_told_with_the_candidate(network, data):
    with pytest.raises(ValueError, match=r"k1=2\.0.*id_scores: 50 of 50 values are NaN or infinite"):
        evaluate(NotANumber(network), data, sweep={"k1_list": [1, 2]}, progress=False)
    found = evaluate(NotANumber(network, k1=1), data, search=False, progress=False)
    assert np.isfinite(found.scores["id"]).all()


class Overflowing(Postprocessor):
    """Infinite at one of its temperatures."""

    APS_mode = True
    hyperparam_search_done = False
    args_dict = {"temperature_list": [1.0, 0.0]}  # noqa: RUF012

    def set_hyperparam(self, hyperparam):
        (self.temperature,) = hyperparam

    def inference(self, net, loader, progress=True):
        pred, score, labels = super().inference(net, loader)
        with np.errstate(divide="ignore"):
            return pred, score / self.temperature, labels


def test_so_are_a_postprocessors(network, data):
    with pytest.raises(
        ValueError, match=r"candidate \[0\.0\]: id_scores: 50 of 50 values are NaN or infinite"
    ):
        evaluate(Overflowing(), data, network, progress=False)


@pytest.mark.parametrize("side", ["near", "far"])
def test_one_split_alone(network, data, side):
    want = evaluate(MSP(network), data)
    sets = getattr(data, side)
    other = "far" if side == "near" else "near"
    for more in ({}, {other: {}}):
        one = Benchmark(data.test, **{side: sets}, **more)
        found = evaluate({"msp": MSP(network), "p": Postprocessor()}, one, network)
        assert list(found["msp"].table.index) == [*sets, f"{side}ood"]
        pd.testing.assert_frame_equal(found["msp"].table, want.table.loc[[*sets, f"{side}ood"]])
        assert list(found["p"].table.index) == [*sets, f"{side}ood"]


def test_no_ood_images_at_all(data):
    with pytest.raises(SettingError, match=r"near, far: None .*at least one OOD set"):
        Benchmark(data.test)
    with pytest.raises(SettingError, match=r"near: \[\] .*OOD sets"):
        Benchmark(data.test, near=[], far=data.far)

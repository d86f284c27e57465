"""OpenOOD's protocol without OpenOOD: metrics by their definitions, tables, CSV."""

import networks as tv
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import HEAD, TinyNet, make_images, make_loader

from openood_adascale import AdaSCALE
from openood_adascale.detectors.lts import LTS
from openood_adascale.detectors.msp import MSP
from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import SettingError
from openood_adascale.evaluation.accuracy import accuracy
from openood_adascale.evaluation.benchmark import Benchmark
from openood_adascale.evaluation.evaluate import evaluate
from openood_adascale.metrics import COLUMNS, ood_metrics


def test_table(network, data):
    result = evaluate(AdaSCALE(network), data, progress=False)
    assert list(result.table.index) == ["a", "b", "nearood", "c", "farood"]
    assert tuple(result.table.columns) == COLUMNS
    near = result.table.loc[["a", "b"]].mean()
    pd.testing.assert_series_equal(result.table.loc["nearood"], near, check_names=False)
    assert len(result.search_results) == 36
    assert {name: len(s) for name, s in result.scores.items()} == {"id": 30, "a": 20, "b": 25, "c": 20}
    want = ood_metrics(result.scores["id"], result.scores["a"])
    assert result.table.loc["a", "AUROC"] == want["AUROC"]
    full = evaluate(AdaSCALE(network), data, full_spectrum=True, progress=False)
    assert len(full.scores["id"]) == 40


def test_accuracy(network, data):
    images, labels = data.test.dataset.tensors
    with torch.no_grad():
        want = (network(images).argmax(1) == labels).double().mean() * 100
    network.train()
    assert accuracy(network, data.test) == pytest.approx(float(want))
    assert network.training


def test_settings_that_a_detector_has_are_kept(network, data):
    fitted = AdaSCALE(network, percentile=(61, 62)).fit(data.val)
    assert evaluate(fitted, data, progress=False).search_results is None
    assert fitted.settings.percentile == (61, 62)
    assert evaluate(fitted, data, search=True, progress=False).search_results is not None


def test_without_search_and_without_validation(network, data):
    data.ood_val = None
    assert evaluate(AdaSCALE(network), data, search=False, progress=False).search_results is None
    with pytest.raises(ValueError, match=r"benchmark\.ood_val: None"):
        evaluate(AdaSCALE(network), data)
    data.val = None
    with pytest.raises(ValueError, match=r"benchmark\.val: None"):
        evaluate(AdaSCALE(network), data, search=False)
    assert "nearood" in evaluate(MSP(network), data, progress=False).table.index


def test_bad_benchmarks(network, data):
    with pytest.raises(SettingError, match="near, far: None"):
        Benchmark(data.test, {}, {})
    with pytest.raises(SettingError, match="far: a set's name: 'a'"):
        Benchmark(data.test, data.near, {**data.far, "a": data.far["c"]})
    with pytest.raises(TypeError, match="network: None"):
        evaluate(object(), data)


class Postprocessor:
    """An object with OpenOOD's postprocessor methods: energy divided by a temperature."""

    APS_mode = True
    hyperparam_search_done = False
    args_dict = {"temperature": [1.0, 10.0, 1000.0]}  # noqa: RUF012

    def setup(self, net, id_loader_dict, ood_loader_dict):
        assert set(ood_loader_dict) == {"val", "near", "far"}
        assert set(id_loader_dict) == {"train", "val", "test"}

    def set_hyperparam(self, hyperparam):
        (self.temperature,) = hyperparam

    def get_hyperparam(self):
        return [self.temperature]

    def inference(self, net, loader, progress=True):
        with torch.no_grad():
            z = torch.cat([net(images) for images, _ in loader]) / self.temperature
        return z.argmax(1).numpy(), z.logsumexp(1).numpy(), np.zeros(len(z), int)


def test_any_object_with_openoods_methods(network, data):
    method = Postprocessor()
    network.train()
    result = evaluate(method, data, network, progress=False)
    assert network.training
    assert method.hyperparam_search_done
    assert list(result.search_results["temperature"]) == [1.0, 10.0, 1000.0]
    assert [method.temperature] == [
        result.search_results.loc[result.search_results["auroc"].idxmax(), "temperature"]
    ]


@pytest.mark.parametrize("name", ["id", "nearood", "farood", 5])
def test_names_that_tables_use_are_refused(data, name):
    with pytest.raises(SettingError, match="near: a set's name: "):
        Benchmark(data.test, {name: data.near["a"]}, data.far)
    with pytest.raises(SettingError, match="far: a set's name: "):
        Benchmark(data.test, data.near, {"c": data.far["c"], name: data.near["a"]})


def test_a_sweep_is_searched_also_by_a_fitted_detector(network, data):
    fitted = AdaSCALE(network).fit(data.val)
    sweep = {"percentile_list": [[61, 62], [70, 90]]}
    assert len(evaluate(fitted, data, sweep=sweep, progress=False).search_results) == 2
    with pytest.raises(SettingError, match=r"sweep: .* expected None with search=False"):
        evaluate(fitted, data, sweep=sweep, search=False)
    with pytest.raises(SettingError, match=r"sweep: .* expected None with Postprocessor"):
        evaluate(Postprocessor(), data, network, sweep=sweep)
    with pytest.raises(SettingError, match=r"postprocessor_sweep: \{\}"):
        evaluate(fitted, data, sweep={})


def test_evaluation_of_a_network_whose_eval_does_something(data):
    torch.manual_seed(0)
    network = tv.Merging()

    class Energy(Postprocessor):
        APS_mode = False
        temperature = 1.0

    want = evaluate(Energy(), data, network.eval(), progress=False).table
    network.train()
    pd.testing.assert_frame_equal(evaluate(Energy(), data, network, progress=False).table, want)
    pd.testing.assert_frame_equal(
        evaluate(MSP(network), data, progress=False).table,
        evaluate(MSP(network.eval()), data, progress=False).table,
    )


def everything(network):
    return {name: method.detector(network, **method.defaults) for name, method in METHODS.items()}


def test_one_pass_serves_all_methods(network, data):
    """The network sees each image as often as for AdaSCALE alone, accuracy included."""
    data.train = make_loader(make_images(60, 12))

    def passes(call):
        network.calls.clear()
        found = call()
        return sum(network.calls), found

    alone, _ = passes(lambda: evaluate(AdaSCALE(network), data, progress=False))
    together, results = passes(lambda: evaluate(everything(network), data, progress=False))
    images = 2 * (50 + 40) + 2 * (30 + 20 + 25 + 20)
    assert alone == images + HEAD
    # The methods that learn from training images share one pass over them; all share its perturbed one.
    assert together == images + 60 + HEAD
    assert list(results) == list(METHODS)
    for name, detector in everything(network).items():
        want = evaluate(detector, data, progress=False)
        got = results[name]
        np.testing.assert_allclose(got.table.to_numpy(), want.table.to_numpy(), atol=1e-6)
        for key, scores in want.scores.items():
            np.testing.assert_allclose(got.scores[key], scores, rtol=1e-5)
        if want.search_results is None:
            assert got.search_results is None
        else:
            pd.testing.assert_frame_equal(got.search_results, want.search_results)
        assert (got.near, got.far) == (("a", "b"), ("c",))


def test_methods_of_several_networks_and_precisions(network, data):
    torch.manual_seed(3)
    other = TinyNet().eval()
    detectors = {
        "one": MSP(network),
        "half": MSP(network, precision="bfloat16"),
        "other": AdaSCALE(other),
    }
    results = evaluate(detectors, data, progress=False)
    assert list(results) == ["one", "half", "other"]
    # ACC is the plain network's, whatever a method runs it in.
    assert results["half"].table["ACC"].tolist() == results["one"].table["ACC"].tolist()
    assert results["one"].table.loc["a", "ACC"] == pytest.approx(accuracy(network, data.test))
    assert results["other"].table.loc["a", "ACC"] == pytest.approx(accuracy(other, data.test))
    only_half = evaluate(MSP(network, precision="bfloat16"), data, progress=False)
    assert only_half.table["ACC"].tolist() == results["one"].table["ACC"].tolist()


def test_a_missing_loader_is_told_before_any_pass(network, data):
    with pytest.raises(ValueError, match=r"benchmark\.train: None"):
        evaluate(everything(network), data, progress=False)
    assert not network.calls


def test_methods_that_learn_nothing_look_at_no_validation_image(network, data):
    MSP(network).fit(data.val)
    assert not network.calls
    data.val = data.ood_val = None
    evaluate({"msp": MSP(network), "lts": LTS(network)}, data, progress=False)
    assert sum(network.calls) == 30 + 20 + 25 + 20 + HEAD

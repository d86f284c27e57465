"""AdaSCALE in OpenOOD's Evaluator: the same as OpenOOD's own, its settings, its metrics."""

from __future__ import annotations

import contextlib
import io
import re

import numpy as np
import pytest
import reference
import torch
from openood_support import (
    ID_VAL_AND_OOD_VAL,
    LOOKED_AT,
    PAIRS,
    write_yml,
)


def test_variable_sets_the_processes_that_read_images(small_evaluator, monkeypatch):
    """For all loaders."""
    for told, workers in (("", 3), ("2", 2), ("0", 0)):
        monkeypatch.setenv("OPENOOD_ADASCALE_WORKERS", told)
        loaders = small_evaluator("msp", num_workers=3).dataloader_dict
        known = loaders["id"]
        for loader in (known["train"], known["val"], known["test"], loaders["ood"]["near"]["tin"]):
            assert loader.num_workers == workers
    monkeypatch.setenv("OPENOOD_ADASCALE_WORKERS", "-1")
    with pytest.raises(
        ValueError, match=r"OPENOOD_ADASCALE_WORKERS: '-1' is not allowed; expected a whole number"
    ):
        small_evaluator("msp")


def aurocs(printed: str) -> dict[str, float]:
    """Return the AUROC that a search printed, by the candidate's percentiles."""
    found = re.findall(r"Hyperparam: \[(\[.*?\]).*\], auroc: ([\d.]+)", printed)
    return {pair: float(value) for pair, value in found}


@pytest.mark.parametrize(
    ("ours", "openoods", "pairs"),
    [("adascale", "adascale_a", PAIRS[:2]), ("adascale_logit", "adascale_l", PAIRS[1:2])],
)
def test_equals_openoods_own(small_evaluator, checkout, tmp_path, packaged, ours, openoods, pairs):
    sweep = {"percentile_list": pairs}
    full = {**sweep, "k1_list": [5], "k2_list": [1], "lmbda_list": [10], "o_list": [0.05]}
    write_yml(
        tmp_path, openoods, checkout / "configs/postprocessors" / f"{openoods}.yml", postprocessor_sweep=full
    )
    write_yml(tmp_path, ours, packaged / f"{ours}.yml", postprocessor_sweep=sweep, num_samples=None)
    evaluators, printed = {}, {}
    for name in (openoods, ours):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            evaluators[name] = small_evaluator(name, config_root=str(tmp_path))
        printed[name] = out.getvalue()
    theirs, mine = evaluators[openoods], evaluators[ours]

    found = {name: aurocs(text) for name, text in printed.items()}
    assert list(found[ours]) == list(found[openoods]) == [str(pair) for pair in pairs]
    for pair in found[ours]:
        assert found[ours][pair] == pytest.approx(found[openoods][pair], abs=5e-4)
    chosen = [int(p) for p in mine.postprocessor.get_hyperparam()[0]]
    assert found[openoods][str(chosen)] == pytest.approx(max(found[openoods].values()), abs=5e-4)

    theirs.postprocessor.set_hyperparam([PAIRS[1], 5, 1, 10, 0.05])
    mine.postprocessor.set_hyperparam([PAIRS[1]])
    close = []
    known, ood = mine.dataloader_dict["id"], mine.dataloader_dict["ood"]
    for loader in (known["val"], known["test"], ood["near"]["tin"], ood["far"]["texture"]):
        with contextlib.redirect_stdout(io.StringIO()):
            want, got = (e.postprocessor.inference(e.net, loader, progress=False) for e in (theirs, mine))
        close.append(np.isclose(got[1], want[1], rtol=1e-3, atol=0))
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[2], want[2])
    # A float32 activation at a rank or rounding boundary can go either way between two correct programs.
    assert np.concatenate(close).mean() >= 0.99


def test_scores_on_real_activations_equal_the_reference(digits_net, evaluator_kwargs):
    from openood.evaluation_api.datasets import get_id_ood_dataloader
    from openood.evaluation_api.preprocessor import get_default_preprocessor

    from openood_adascale import AdaSCALE
    from openood_adascale.features.extractor import FeatureExtractor
    from openood_adascale.features.statistics import Perturbation

    loaders = get_id_ood_dataloader(
        "cifar10", evaluator_kwargs["data_root"], get_default_preprocessor("cifar10"), batch_size=24
    )
    val, ood = (next(iter(part))["data"] for part in (loaders["id"]["val"], loaders["ood"]["near"]["tin"]))
    net, perturbation = digits_net(), Perturbation("trivial", 0.05, 0.5)
    arrays = []
    for images in (val, ood):
        features = FeatureExtractor(net).extract(images, [perturbation])
        arrays += [features.activation.numpy(), features.perturbed[perturbation].numpy()]
    head = (net.fc.weight.detach().numpy(), net.fc.bias.detach().numpy())
    for variant in ("A", "L"):
        detector = AdaSCALE(net, variant=variant, percentile=(60, 95)).fit([val])
        want, _, pred = reference.scores(*arrays, *head, variant=variant, percentile_pair=(60, 95))
        found = detector.predict(ood)
        np.testing.assert_allclose(found[1].numpy(), want, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found[0].numpy(), pred)


def test_without_search_the_state_is_valid_after_setup(small_evaluator, small_net, tmp_path, packaged):
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", APS_mode=False, percentile=[70, 90])
    evaluator = small_evaluator("adascale", net=small_net, config_root=str(tmp_path))
    assert small_net.images <= 2 * ID_VAL_AND_OOD_VAL[0] + LOOKED_AT
    postprocessor = evaluator.postprocessor
    assert postprocessor.settings.percentile == (70, 90)
    images = torch.cat([batch["data"] for batch in evaluator.dataloader_dict["id"]["test"]])
    pred, conf = postprocessor.postprocess(evaluator.net, images)
    whole = postprocessor.inference(evaluator.net, evaluator.dataloader_dict["id"]["test"], progress=False)
    np.testing.assert_array_equal(pred.numpy(), whole[0])
    np.testing.assert_allclose(conf.numpy(), whole[1], rtol=1e-3)


def test_instance_is_set_up_and_searched(small_evaluator):
    from openood_adascale.plugin.postprocessor import AdaSCALELogitPostprocessor, AdaSCALEPostprocessor

    plain = AdaSCALEPostprocessor(percentile=(70, 85))
    assert small_evaluator(postprocessor=plain).postprocessor.get_hyperparam()[1] == [70, 85]
    searching = AdaSCALELogitPostprocessor(sweep={"percentile_list": [[60, 70], [80, 85]]})
    evaluator = small_evaluator(postprocessor=searching)
    assert searching.settings.variant == "L"
    assert searching.hyperparam_search_done
    best = searching.settings
    again = small_evaluator(net=evaluator.net, postprocessor=searching)  # fitted and searched again
    assert again.postprocessor.hyperparam_search_done
    assert searching.settings == best


def test_metrics_equal_those_of_evaluation(small_evaluator):
    from openood_adascale import Benchmark, evaluate

    for name in ("msp", "adascale"):
        evaluator = small_evaluator(name)
        table = evaluator.eval_ood(fsood=False, progress=False)
        full = evaluator.eval_ood(fsood=True, progress=False)
        other = small_evaluator(name)
        benchmark = Benchmark.from_openood(other.dataloader_dict)
        mine = evaluate(other.postprocessor, benchmark, other.net, progress=False)
        np.testing.assert_allclose(mine.table.to_numpy(), table.to_numpy().astype(float), atol=1e-6)
        assert list(mine.table.index) == list(table.index)
        assert list(mine.table.columns) == list(table.columns)
        spectrum = evaluate(other.postprocessor, benchmark, other.net, full_spectrum=True, progress=False)
        np.testing.assert_allclose(spectrum.table.to_numpy(), full.to_numpy().astype(float), atol=1e-6)


def test_evaluation_searches_openoods_own_postprocessors(small_evaluator, tmp_path, checkout):
    """`evaluate` with an OpenOOD postprocessor that has not been set up gives what the Evaluator gives."""
    from openood.evaluation_api.postprocessor import get_postprocessor

    from openood_adascale import Benchmark, evaluate

    sweep = {"percentile_list": [65, 85]}
    write_yml(tmp_path, "scale", checkout / "configs/postprocessors/scale.yml", postprocessor_sweep=sweep)
    evaluator = small_evaluator("scale", config_root=str(tmp_path))
    table = evaluator.eval_ood(progress=False)
    fresh = get_postprocessor(str(tmp_path), "scale", "cifar10")
    benchmark = Benchmark.from_openood(evaluator.dataloader_dict)
    mine = evaluate(fresh, benchmark, evaluator.net, progress=False)
    np.testing.assert_allclose(mine.table.to_numpy(), table.to_numpy().astype(float), atol=1e-6)
    assert len(mine.search_results) == 2


def test_precision_from_the_environment(small_evaluator, monkeypatch):
    monkeypatch.setenv("OPENOOD_ADASCALE_PRECISION", "bfloat16")
    assert small_evaluator("lts").postprocessor.settings.precision == "bfloat16"
    monkeypatch.setenv("OPENOOD_ADASCALE_PRECISION", "bf16")
    with pytest.raises(ValueError, match="precision: 'bf16'"):
        small_evaluator("lts")


def test_bad_settings_are_named_before_any_work(small_evaluator, small_net, tmp_path, packaged):
    from openood_adascale.errors import SettingError

    for change, message in [
        ({"k1": 0}, "k1: 0"), ({"k7": 1}, "k7"), ({"percentile": [85, 80]}, "percentile"),
        ({"postprocessor_sweep": None}, "postprocessor_sweep"), ({"postprocessor_sweep": {"k1_list": []}}, "k1_list"),
        ({"postprocessor_sweep": {"k1_list": [1, 500]}}, "500"), ({"APS_mode": "yes"}, "APS_mode"),
        ({"APS_mode": False, "postprocessor_sweep": {"k9_list": [1]}}, "k9_list"),
    ]:  # fmt: skip
        write_yml(tmp_path, "adascale", packaged / "adascale.yml", **change)
        with pytest.raises(SettingError, match=message):
            small_evaluator("adascale", net=small_net, config_root=str(tmp_path))
    assert small_net.images == 0


def test_openoods_naming_draws_a_warning(tmp_path, checkout, small_evaluator):
    write_yml(tmp_path, "adascale", checkout / "configs/postprocessors/adascale_a.yml", APS_mode=False)
    with pytest.warns(UserWarning, match="the other way round") as caught:
        small_evaluator("adascale", config_root=str(tmp_path))
    assert len([w for w in caught if "the other way round" in str(w.message)]) == 1


def test_misspelt_sections_and_calls_out_of_order(small_net):
    from openood_adascale.errors import NotFittedError, SettingError
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    with pytest.raises(SettingError, match="postprocessor: postprocessor_arg: "):
        AdaSCALEPostprocessor({"postprocessor": {"postprocessor_arg": {"k1": 50}}})
    with pytest.raises(NotFittedError, match="call setup"):
        AdaSCALEPostprocessor().postprocess(small_net, torch.randn(4, 3, 32, 32))
    searching = AdaSCALEPostprocessor()
    searching.APS_mode = True
    with pytest.raises(SettingError, match="postprocessor_sweep"):
        searching.setup(small_net, {"val": []}, {})
    with pytest.warns(UserWarning, match="the other way round"):
        AdaSCALEPostprocessor(sweep={"k1_list": [1, 5], "k2_list": [1]})

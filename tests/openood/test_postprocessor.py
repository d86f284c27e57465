"""This package's methods in OpenOOD's Evaluator and main.py: OpenOOD's own AdaSCALE, settings, fitting, metrics."""

from __future__ import annotations

import contextlib
import io
import re

import numpy as np
import pytest
import torch
from openood_support import FITTED, ID_VAL_AND_OOD_VAL, LOOKED_AT, PAIRS, SWEEPS, SmallNet, standalone

from openood_adascale import Benchmark, evaluate
from openood_adascale.errors import NotFittedError, SettingError
from openood_adascale.plugin.import_hook import configs_root
from openood_adascale.published import presets


def aurocs(printed: str) -> dict[str, float]:
    """Return the AUROC that a search printed, by the candidate's percentiles."""
    found = re.findall(r"Hyperparam: \[(\[.*?\]).*\], auroc: ([\d.]+)", printed)
    return {pair: float(value) for pair, value in found}


@pytest.mark.parametrize(
    ("ours", "openoods", "pairs"),
    [("adascale", "adascale_a", PAIRS[:2]), ("adascale_logit", "adascale_l", PAIRS[1:2])],
)
def test_search_and_scores_equal_openoods_own_adascale(small_evaluator, configs, ours, openoods, pairs):
    sweep = {"percentile_list": pairs}
    full = {**sweep, "k1_list": [5], "k2_list": [1], "lmbda_list": [10], "o_list": [0.05]}
    configs(openoods, postprocessor_sweep=full)
    root = configs(ours, postprocessor_sweep=sweep, num_samples=None)
    evaluators, printed = {}, {}
    for name in (openoods, ours):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            evaluators[name] = small_evaluator(name, config_root=root)
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


def test_without_search_the_state_is_valid_after_setup(small_evaluator, small_net, configs):
    evaluator = small_evaluator(
        "adascale", config_root=configs("adascale", APS_mode=False, percentile=[70, 90])
    )
    assert small_net.images <= 2 * ID_VAL_AND_OOD_VAL[0] + LOOKED_AT
    postprocessor, test = evaluator.postprocessor, evaluator.dataloader_dict["id"]["test"]
    assert postprocessor.settings.percentile == (70, 90)
    pred, conf = postprocessor.postprocess(evaluator.net, torch.cat([batch["data"] for batch in test]))
    whole = postprocessor.inference(evaluator.net, test, progress=False)
    np.testing.assert_array_equal(pred.numpy(), whole[0])
    np.testing.assert_allclose(conf.numpy(), whole[1], rtol=1e-3)


@pytest.mark.parametrize("name", SWEEPS)
def test_method_is_fitted_and_scores_as_without_openood(small_evaluator, small_net, name):
    evaluator = small_evaluator(name)
    known = evaluator.dataloader_dict["id"]
    assert small_net.images == (len(known["train"].dataset) + LOOKED_AT if name in FITTED else 0)
    table = evaluator.eval_ood(progress=False)
    assert np.isfinite(table.to_numpy().astype(float)).all()
    want = standalone(evaluator.postprocessor, known["train"]).predict_loader(known["test"])
    got = evaluator.scores["id"]["test"]
    np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got[0], want[0])


@pytest.mark.parametrize("name", ["adascale_resnet50", "adascale_logit_cifar10_wrn_28_10"])
def test_preset_has_its_published_settings(small_evaluator, small_net, name):
    evaluator = small_evaluator(name)
    postprocessor, row = evaluator.postprocessor, presets().set_index("name").loc[name]
    assert not postprocessor.APS_mode
    assert postprocessor.settings.variant == row["variant"]
    assert postprocessor.settings.percentile == (row["p_min"], row["p_max"])
    assert postprocessor.settings.k2 == row["k2_percent"]
    assert small_net.images == 2 * ID_VAL_AND_OOD_VAL[0] + LOOKED_AT
    assert np.isfinite(evaluator.eval_ood(progress=False).to_numpy().astype(float)).all()


def test_every_preset_is_registered_with_evaluator_and_main_py():
    from openood.evaluation_api import postprocessor as api
    from openood.postprocessors import get_postprocessor
    from openood.utils.config import Config

    from openood_adascale.plugin.postprocessor import POSTPROCESSORS

    for name in [*presets()["name"], *SWEEPS]:
        assert api.postprocessors[name] is POSTPROCESSORS[name]
        made = get_postprocessor(Config(str(configs_root() / f"postprocessors/{name}.yml")))
        assert type(made) is POSTPROCESSORS[name]
        assert not made.APS_mode
    for row in presets().itertuples():
        assert POSTPROCESSORS[row.name](k1=1).settings.variant == row.variant


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


@pytest.mark.parametrize("name", ["msp", "adascale"])
def test_metrics_equal_those_of_evaluate(small_evaluator, name):
    evaluator, other = small_evaluator(name), small_evaluator(name)
    benchmark = Benchmark.from_openood(other.dataloader_dict)
    for full in (False, True):
        table = evaluator.eval_ood(fsood=full, progress=False)
        mine = evaluate(other.postprocessor, benchmark, other.net, full_spectrum=full, progress=False)
        np.testing.assert_allclose(mine.table.to_numpy(), table.to_numpy().astype(float), atol=1e-6)
        assert list(mine.table.index) == list(table.index)
        assert list(mine.table.columns) == list(table.columns)


def test_evaluate_searches_openoods_own_postprocessors(small_evaluator, configs):
    from openood.evaluation_api.postprocessor import get_postprocessor

    root = configs("scale", postprocessor_sweep={"percentile_list": [65, 85]})
    evaluator = small_evaluator("scale", config_root=root)
    table = evaluator.eval_ood(progress=False)
    fresh = get_postprocessor(root, "scale", "cifar10")
    benchmark = Benchmark.from_openood(evaluator.dataloader_dict)
    mine = evaluate(fresh, benchmark, evaluator.net, progress=False)
    np.testing.assert_allclose(mine.table.to_numpy(), table.to_numpy().astype(float), atol=1e-6)
    assert len(mine.search_results) == 2


@pytest.mark.parametrize(("told", "workers"), [("", 3), ("2", 2), ("0", 0)])
def test_variable_sets_the_processes_that_read_images(small_evaluator, monkeypatch, told, workers):
    monkeypatch.setenv("OPENOOD_ADASCALE_WORKERS", told)
    loaders = small_evaluator("msp", num_workers=3).dataloader_dict
    for loader in (*loaders["id"].values(), loaders["ood"]["near"]["tin"]):
        assert loader.num_workers == workers


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        (
            "OPENOOD_ADASCALE_WORKERS",
            "-1",
            "OPENOOD_ADASCALE_WORKERS: '-1' is not allowed; expected a whole number",
        ),
        ("OPENOOD_ADASCALE_PRECISION", "bf16", "precision: 'bf16'"),
    ],
)
def test_invalid_variable_is_an_error(small_evaluator, monkeypatch, variable, value, told):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=told):
        small_evaluator("lts")


def test_variable_sets_the_precision(small_evaluator, monkeypatch):
    monkeypatch.setenv("OPENOOD_ADASCALE_PRECISION", "bfloat16")
    assert small_evaluator("lts").postprocessor.settings.precision == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"k1": 0}, "k1: 0"),
        ({"k7": 1}, "k7"),
        ({"postprocessor_sweep": None}, "postprocessor_sweep"),
        ({"postprocessor_sweep": {"k1_list": [1, 500]}}, "500"),
        ({"APS_mode": "yes"}, "APS_mode"),
        ({"APS_mode": False, "postprocessor_sweep": {"k9_list": [1]}}, "k9_list"),
    ],
)
def test_invalid_yaml_file_is_an_error_before_any_pass(small_evaluator, small_net, configs, changes, told):
    with pytest.raises(SettingError, match=told):
        small_evaluator("adascale", config_root=configs("adascale", **changes))
    assert small_net.images == 0


def test_openoods_naming_of_k1_and_k2_is_warned_of_once(configs, small_evaluator):
    root = configs("adascale", source="adascale_a", APS_mode=False)
    with pytest.warns(UserWarning, match="the other way round") as caught:
        small_evaluator("adascale", config_root=root)
    assert len([w for w in caught if "the other way round" in str(w.message)]) == 1


def test_misspelt_sections_and_calls_out_of_order_are_errors(small_net):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    with pytest.raises(SettingError, match="postprocessor: postprocessor_arg: "):
        AdaSCALEPostprocessor({"postprocessor": {"postprocessor_arg": {"k1": 50}}})
    with pytest.raises(NotFittedError, match="call setup"):
        AdaSCALEPostprocessor().postprocess(small_net, torch.randn(4, 3, 32, 32))
    searching = AdaSCALEPostprocessor()
    searching.APS_mode = True
    with pytest.raises(SettingError, match="postprocessor_sweep"):
        searching.setup(small_net, {"val": []}, {})


@pytest.mark.parametrize("name", FITTED)
def test_missing_training_images_are_an_error(small_evaluator, name):
    from openood_adascale.plugin.postprocessor import POSTPROCESSORS

    val_only, net = {"val": small_evaluator("msp").dataloader_dict["id"]["val"]}, SmallNet().eval()
    with pytest.raises(
        ValueError, match=r"id_loader_dict: it has no 'train', only \['val'\].*fit_split: val"
    ):
        POSTPROCESSORS[name]().setup(net, val_only, {})
    assert net.images == 0
    POSTPROCESSORS[name](fit_split="val").setup(net, val_only, {})
    assert net.images == ID_VAL_AND_OOD_VAL[0] + LOOKED_AT


@pytest.mark.parametrize("name", SWEEPS)
def test_order_of_calls_of_main_py_gives_the_same_scores(small_evaluator, configs, name):
    """The test set comes before the search, loaders shuffle, and the last tie wins."""
    from openood.evaluators.ood_evaluator import OODEvaluator
    from openood.postprocessors import get_postprocessor
    from openood.utils.config import Config

    loaders = small_evaluator("msp").dataloader_dict
    root = configs(name, APS_mode=True, postprocessor_sweep=SWEEPS[name])
    config = Config(f"{root}/postprocessors/{name}.yml")
    known, net = dict(loaders["id"]), SmallNet().eval()
    known["train"] = torch.utils.data.DataLoader(known["train"].dataset, 16, shuffle=True)
    ood = {"val": loaders["ood"]["val"], "nearood": loaders["ood"]["near"], "farood": loaders["ood"]["far"]}
    postprocessor = get_postprocessor(config)
    postprocessor.setup(net, known, ood)
    net.images = 0
    first = postprocessor.inference(net, known["test"], progress=False)
    assert np.isfinite(first[1]).all()
    OODEvaluator(config).hyperparam_search(net, known["val"], ood["val"], postprocessor)
    assert net.images <= len(known["test"].dataset) + sum(ID_VAL_AND_OOD_VAL) + LOOKED_AT
    want = standalone(postprocessor, known["train"]).predict_loader(known["test"])[1]
    got = postprocessor.inference(net, known["test"], progress=False)[1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)

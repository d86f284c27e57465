"""Searches of our postprocessors in OpenOOD: one pass over each loader; fitting again for other networks and images."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from openood_support import (
    ID_VAL_AND_OOD_VAL,
    LOOKED_AT,
    PAIRS,
    SmallNet,
    batches,
    loaders_of,
    through_file,
    write_yml,
)

from openood_adascale.errors import NotFittedError


def test_search_is_one_pass_over_each_validation_loader(small_evaluator, small_net, tmp_path, packaged):
    images = sum(ID_VAL_AND_OOD_VAL)
    sweep = {"percentile_list": PAIRS, "k2_list": [5, 50], "lmbda_list": [1, 10]}
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep=sweep)
    evaluator = small_evaluator("adascale", net=small_net, config_root=str(tmp_path))
    assert small_net.images <= 2 * images + LOOKED_AT
    assert evaluator.postprocessor.hyperparam_search_done
    small_net.images = 0
    more = {**sweep, "o_list": [0.01, 0.05, 0.1]}
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep=more)
    small_evaluator("adascale", net=small_net, config_root=str(tmp_path))
    assert small_net.images <= 4 * images + LOOKED_AT


def test_a_second_search_is_one_pass_again(small_evaluator, small_net, tmp_path, packaged):
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep={"percentile_list": PAIRS})
    evaluator = small_evaluator("adascale", config_root=str(tmp_path))
    first = evaluator.postprocessor.get_hyperparam()
    small_net.images = 0
    evaluator.hyperparam_search()
    assert small_net.images <= 2 * sum(ID_VAL_AND_OOD_VAL)
    assert evaluator.postprocessor.get_hyperparam() == first


def test_accuracy_needs_no_pass_of_its_own(small_evaluator, small_net, tmp_path, packaged):
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", APS_mode=False)
    evaluator = small_evaluator("adascale", net=small_net, config_root=str(tmp_path))
    small_net.images = 0
    table = evaluator.eval_ood(fsood=True, progress=False)
    loaders = evaluator.dataloader_dict
    tested = [loaders["id"]["test"], *loaders["csid"].values()]
    for split in ("near", "far"):
        tested += loaders["ood"][split].values()
    assert small_net.images == 2 * sum(len(loader.dataset) for loader in tested)
    plain = small_evaluator("msp", net=small_net).eval_ood(fsood=True, progress=False)
    assert table["ACC"].iloc[0] == plain["ACC"].iloc[0]


def test_candidates_after_a_matching_pickle(small_evaluator, small_net, tmp_path, packaged):
    """main.py searches regardless of ``hyperparam_search_done``."""
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep={"k2_list": [5, 50]})
    first = small_evaluator("adascale", config_root=str(tmp_path))
    restored = through_file(first.postprocessor, tmp_path / "adascale.pkl")
    second = small_evaluator(postprocessor=restored, config_root=str(tmp_path))
    second.hyperparam_search()
    assert restored.settings == first.postprocessor.settings
    torch.testing.assert_close(restored.state, first.postprocessor.state)


def test_setup_of_a_live_instance_fits_again(small_net):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    postprocessor = AdaSCALEPostprocessor(num_samples=None)
    postprocessor.setup(small_net, *loaders_of(40, 0))
    assert len(postprocessor.state) == 40
    postprocessor.setup(small_net, *loaders_of(200, 10))
    fresh = AdaSCALEPostprocessor(num_samples=None)
    fresh.setup(small_net, *loaders_of(200, 10))
    torch.testing.assert_close(postprocessor.state, fresh.state)


def test_statistics_are_of_their_own_loader(small_net):
    """An id() is used again once its object is gone."""
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    class Loader:
        def __init__(self, seed):
            self.seed = seed

        def __iter__(self):
            return iter(batches(20, self.seed))

    postprocessor = AdaSCALEPostprocessor(sweep={"percentile_list": PAIRS})
    for seed in range(4):
        known, ood = {"val": Loader(seed)}, {"val": Loader(seed + 100)}
        postprocessor.setup(small_net, known, ood)
        postprocessor.set_hyperparam([PAIRS[0]])
        got = postprocessor.inference(small_net, ood["val"], progress=False)[1]
        fresh = AdaSCALEPostprocessor(percentile=PAIRS[0])
        fresh.setup(small_net, known, ood)
        np.testing.assert_allclose(got, fresh.inference(small_net, ood["val"], progress=False)[1])
        del known, ood


def test_other_networks_and_changed_weights_are_not_scored(small_net):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor, LTSPostprocessor

    postprocessor, images = AdaSCALEPostprocessor(), torch.randn(4, 3, 32, 32)
    postprocessor.setup(small_net, *loaders_of(40, 0))
    want = postprocessor.postprocess(small_net, images)[1]
    torch.testing.assert_close(postprocessor.postprocess(torch.nn.DataParallel(small_net), images)[1], want)
    with pytest.raises(NotFittedError, match="is not fitted for this network: call setup"):
        postprocessor.postprocess(copy.deepcopy(small_net), images)
    small_net.fc = torch.nn.Linear(128, 10)
    for call in (
        lambda: postprocessor.postprocess(small_net, images),
        lambda: postprocessor.inference(small_net, batches(4, 0), progress=False),
    ):
        with pytest.raises(NotFittedError, match="weights of SmallNet have been written or replaced"):
            call()
    LTSPostprocessor().postprocess(SmallNet(3).eval(), images)


@pytest.mark.parametrize(("name", "ours"), [("adascale_a", "adascale"), ("adascale_l", "adascale_logit")])
def test_openoods_own_adascale_mentions_the_faster_search_once(
    small_evaluator, tmp_path, checkout, capfd, monkeypatch, name, ours
):
    from openood_adascale.plugin import import_hook

    monkeypatch.setattr(import_hook, "_said", set())
    sweep = {
        "percentile_list": PAIRS[:1],
        "k1_list": [5],
        "k2_list": [1],
        "lmbda_list": [10],
        "o_list": [0.05],
    }
    write_yml(tmp_path, name, checkout / f"configs/postprocessors/{name}.yml", postprocessor_sweep=sweep)
    for _ in range(2):
        small_evaluator(name, config_root=str(tmp_path))
    lines = [
        line for line in capfd.readouterr().err.splitlines() if line.startswith("openood-adascale: adascale")
    ]
    assert len(lines) == 1
    assert f"{name} is OpenOOD's own; {ours} gives the same with its search in one pass" in lines[0]
    assert f"k1_list: [5], k2_list: [1] of {name} is k1: 1, k2: 5 of {ours}" in lines[0]

"""Searches in OpenOOD's Evaluator: one pass over each loader; other networks and images are fitted again."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from openood_support import (
    FITTED,
    ID_VAL_AND_OOD_VAL,
    LOOKED_AT,
    PAIRS,
    SWEEPS,
    SmallNet,
    batches,
    loaders_of,
    standalone,
    through_file,
)

from openood_adascale.errors import NotFittedError


def test_adascale_search_is_a_pass_per_perturbation(small_evaluator, small_net, configs):
    images = sum(ID_VAL_AND_OOD_VAL)
    sweep = {"percentile_list": PAIRS, "k2_list": [5, 50], "lmbda_list": [1, 10]}
    small_evaluator("adascale", config_root=configs("adascale", postprocessor_sweep=sweep))
    assert small_net.images <= 2 * images + LOOKED_AT
    small_net.images = 0
    sweep["o_list"] = [0.01, 0.05, 0.1]
    evaluator = small_evaluator("adascale", config_root=configs("adascale", postprocessor_sweep=sweep))
    assert small_net.images <= 4 * images + LOOKED_AT
    assert evaluator.postprocessor.hyperparam_search_done
    best = evaluator.postprocessor.get_hyperparam()
    small_net.images = 0
    evaluator.hyperparam_search()
    assert small_net.images <= 4 * images
    assert evaluator.postprocessor.get_hyperparam() == best


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("fit_split", ["train", "val"])
def test_search_is_one_pass_and_the_same_without_openood(
    small_evaluator, small_net, configs, name, fit_split
):
    changes = {"fit_split": fit_split} if name in FITTED else {}
    root = configs(name, APS_mode=True, postprocessor_sweep=SWEEPS[name], **changes)
    evaluator = small_evaluator(name, config_root=root)
    known, ood = (evaluator.dataloader_dict[key] for key in ("id", "ood"))
    on_train = changes == {"fit_split": "train"}
    passed = sum(ID_VAL_AND_OOD_VAL) + (len(known["train"].dataset) if on_train else 0)
    assert small_net.images == passed + LOOKED_AT
    postprocessor = evaluator.postprocessor
    assert postprocessor.hyperparam_search_done
    got = postprocessor.inference(small_net, known["test"], progress=False)[1]
    want = standalone(postprocessor, known[fit_split]).predict_loader(known["test"])[1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    detector = postprocessor.method.detector(SmallNet().eval(), **changes)
    fitted = {"fit_loader": known["train"]} if on_train else {}
    found = detector.search(known["val"], ood["val"], SWEEPS[name], False, **fitted)
    assert found.best_settings == postprocessor.settings
    before = small_net.images
    postprocessor.set_hyperparam(postprocessor.get_hyperparam())  # no further pass over the training images
    assert small_net.images == before


def test_accuracy_needs_no_pass_of_its_own(small_evaluator, small_net, configs):
    evaluator = small_evaluator("adascale", config_root=configs("adascale", APS_mode=False))
    small_net.images = 0
    table = evaluator.eval_ood(fsood=True, progress=False)
    loaders = evaluator.dataloader_dict
    near, far = (loaders["ood"][split].values() for split in ("near", "far"))
    tested = [loaders["id"]["test"], *loaders["csid"].values(), *near, *far]
    assert small_net.images == 2 * sum(len(loader.dataset) for loader in tested)
    plain = small_evaluator("msp").eval_ood(fsood=True, progress=False)
    assert table["ACC"].iloc[0] == plain["ACC"].iloc[0]


def test_search_after_a_matching_pickle_gives_the_same(small_evaluator, configs, tmp_path):
    """main.py searches regardless of ``hyperparam_search_done``."""
    root = configs("adascale", postprocessor_sweep={"k2_list": [5, 50]})
    first = small_evaluator("adascale", config_root=root)
    restored = through_file(first.postprocessor, tmp_path / "adascale.pkl")
    second = small_evaluator(postprocessor=restored, config_root=root)
    second.hyperparam_search()
    assert restored.settings == first.postprocessor.settings
    torch.testing.assert_close(restored.state, first.postprocessor.state)


def test_setup_with_other_images_fits_again(small_net):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    postprocessor, fresh = (AdaSCALEPostprocessor(num_samples=None) for _ in range(2))
    postprocessor.setup(small_net, *loaders_of(40, 0))
    assert len(postprocessor.state) == 40
    for one in (postprocessor, fresh):
        one.setup(small_net, *loaders_of(200, 10))
    torch.testing.assert_close(postprocessor.state, fresh.state)


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
    small_evaluator, configs, capfd, monkeypatch, name, ours
):
    from openood_adascale.plugin import import_hook

    monkeypatch.setattr(import_hook, "_said", set())
    sweep = {"k1_list": [5], "k2_list": [1], "lmbda_list": [10], "o_list": [0.05]}
    root = configs(name, postprocessor_sweep={"percentile_list": PAIRS[:1], **sweep})
    for _ in range(2):
        small_evaluator(name, config_root=root)
    said = [
        line for line in capfd.readouterr().err.splitlines() if line.startswith("openood-adascale: adascale")
    ]
    assert len(said) == 1
    assert f"{name} is OpenOOD's own; {ours} gives the same with its search in one pass" in said[0]
    assert f"k1_list: [5], k2_list: [1] of {name} is k1: 1, k2: 5 of {ours}" in said[0]

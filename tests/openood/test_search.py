"""Searches and passes of our postprocessors in OpenOOD: one pass per search, anew for other images or networks."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from openood_postprocessing import (
    ID_VAL_AND_OOD_VAL,
    LOOKED_AT,
    PAIRS,
    SmallNet,
    batches,
    loaders_of,
    through_file,
    write_yml,
)


def test_search_is_one_pass_over_each_validation_loader(small_evaluator, small_net, tmp_path, packaged):
    images = sum(ID_VAL_AND_OOD_VAL)
    sweep = {"percentile_list": PAIRS, "k2_list": [5, 50], "lmbda_list": [1, 10]}
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep=sweep)
    evaluator = small_evaluator("adascale", net=small_net, config_root=str(tmp_path))
    assert small_net.images <= 2 * images + LOOKED_AT
    assert evaluator.postprocessor.hyperparam_search_done
    assert not evaluator.postprocessor._session._kept
    small_net.images = 0
    write_yml(
        tmp_path,
        "adascale",
        packaged / "adascale.yml",
        postprocessor_sweep={**sweep, "o_list": [0.01, 0.05, 0.1]},
    )
    small_evaluator("adascale", net=small_net, config_root=str(tmp_path))
    assert small_net.images <= 4 * images + LOOKED_AT


def test_a_second_search_of_one_instance_is_one_pass_again(small_evaluator, small_net, tmp_path, packaged):
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep={"percentile_list": PAIRS})
    evaluator = small_evaluator("adascale", config_root=str(tmp_path))
    first = evaluator.postprocessor.get_hyperparam()
    small_net.images = 0
    evaluator.hyperparam_search()
    assert small_net.images <= 2 * sum(ID_VAL_AND_OOD_VAL)
    assert evaluator.postprocessor.get_hyperparam() == first


def test_candidates_after_a_matching_pickle(small_evaluator, small_net, tmp_path, packaged):
    """main.py searches whatever `hyperparam_search_done` says."""
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep={"k2_list": [5, 50]})
    first = small_evaluator("adascale", config_root=str(tmp_path))
    restored = through_file(first.postprocessor, tmp_path / "adascale.pkl")
    second = small_evaluator(postprocessor=restored, config_root=str(tmp_path))
    second.hyperparam_search()
    assert restored.settings == first.postprocessor.settings
    torch.testing.assert_close(restored.state, first.postprocessor.state)


def test_another_network_in_between_does_not_reach_the_state(small_evaluator, small_net, tmp_path, packaged):
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep={"k2_list": [5, 50]})
    postprocessor = small_evaluator("adascale", config_root=str(tmp_path)).postprocessor
    postprocessor.set_hyperparam([50])
    want = postprocessor.state
    postprocessor.get_hyperparam()
    with pytest.raises(RuntimeError, match="net: its layers or weights are not those"):
        postprocessor.postprocess(SmallNet(3).eval(), torch.randn(4, 3, 32, 32))
    postprocessor.set_hyperparam([50])
    torch.testing.assert_close(postprocessor.state, want)


@pytest.mark.parametrize("other", ["val", "ood_val", "as many"])
def test_evaluating_elsewhere_learns_and_searches_anew(small_net, other):
    from openood_adascale import Benchmark, evaluate
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    def benchmark(seed, ood_seed):
        (known, ood), far = loaders_of(50, seed), batches(20, 99)
        ood = loaders_of(50, ood_seed)[1]
        sets = torch.utils.data.TensorDataset
        tell = lambda batch: torch.utils.data.DataLoader(  # noqa: E731
            sets(batch[0]["data"], batch[0]["label"]), batch_size=25
        )
        if other == "as many":
            return Benchmark(known["test"], {"a": batches(20, 5)}, {"b": far}, known["val"], ood["val"])
        return Benchmark(
            known["test"], {"a": batches(20, 5)}, {"b": far}, tell(known["val"]), tell(ood["val"])
        )

    sweep = {"percentile_list": PAIRS}
    postprocessor = AdaSCALEPostprocessor(sweep=sweep)
    assert evaluate(postprocessor, benchmark(0, 0), small_net, progress=False).search is not None
    if other != "as many":
        assert (
            evaluate(postprocessor, benchmark(0, 0), small_net, progress=False).search is None
        )  # the same images
    second = benchmark(7 if other != "ood_val" else 0, 7)
    again = evaluate(postprocessor, second, small_net, progress=False)
    fresh = evaluate(AdaSCALEPostprocessor(sweep=sweep), second, small_net, progress=False)
    pd.testing.assert_frame_equal(again.search, fresh.search)
    for name, scores in fresh.scores.items():
        np.testing.assert_allclose(again.scores[name], scores)


def test_evidence_is_of_its_own_loader(small_net):
    """An id() is used again as soon as its object is gone."""
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    class Loader:
        def __init__(self, seed):
            self.seed = seed

        def __iter__(self):
            return iter(batches(20, self.seed))

    postprocessor = AdaSCALEPostprocessor(sweep={"percentile_list": PAIRS})
    for seed in range(8):
        known, ood = {"val": Loader(seed)}, {"val": Loader(seed + 100)}
        postprocessor.setup(small_net, known, ood)
        postprocessor.set_hyperparam([PAIRS[0]])
        got = postprocessor.inference(small_net, ood["val"], progress=False)[1]
        fresh = AdaSCALEPostprocessor(percentile=PAIRS[0])
        fresh.setup(small_net, known, ood)
        np.testing.assert_allclose(got, fresh.inference(small_net, ood["val"], progress=False)[1])
        postprocessor.hyperparam_search_done = True  # as the Evaluator says after a search
        del known, ood


def test_setup_with_images_that_cannot_be_told_apart_learns_anew(small_net):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    postprocessor = AdaSCALEPostprocessor(num_samples=None)
    postprocessor.setup(small_net, *loaders_of(40, 0))
    assert len(postprocessor.state) == 40
    postprocessor.setup(small_net, *loaders_of(200, 10))
    assert len(postprocessor.state) == 200
    fresh = AdaSCALEPostprocessor(num_samples=None)
    fresh.setup(small_net, *loaders_of(200, 10))
    torch.testing.assert_close(postprocessor.state, fresh.state)


def test_other_images_or_settings_make_a_live_instance_learn_anew(small_evaluator, small_net):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    postprocessor = AdaSCALEPostprocessor()
    first = small_evaluator(postprocessor=postprocessor)
    small_net.images = 0
    small_evaluator(postprocessor=postprocessor)
    assert small_net.images == 0
    state = postprocessor.state
    postprocessor.settings = postprocessor.settings.replace(k2=50)
    small_evaluator(postprocessor=postprocessor)
    assert postprocessor.settings.k2 == 50
    assert not torch.equal(postprocessor.state, state)
    state, transform = postprocessor.state, first.preprocessor.transform
    other = type(first.preprocessor).__new__(type(first.preprocessor))
    other.transform = type(transform)(transform.transforms[:-1])  # not normalised
    small_evaluator(postprocessor=postprocessor, preprocessor=other)
    assert not torch.equal(postprocessor.state, state)


def test_a_network_that_changes_after_setup_is_noticed(small_net):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor, LTSPostprocessor

    postprocessor, images = AdaSCALEPostprocessor(), torch.randn(4, 3, 32, 32)
    postprocessor.setup(small_net, *loaders_of(40, 0))
    want = postprocessor.postprocess(small_net, images)[1]
    parallel = torch.nn.DataParallel(copy.deepcopy(small_net))  # on a GPU, where there is one
    torch.testing.assert_close(
        postprocessor.postprocess(parallel, images)[1].cpu(), want, rtol=1e-5, atol=1e-5
    )
    small_net.fc = torch.nn.Linear(128, 10)
    for call in (
        lambda: postprocessor.postprocess(small_net, images),
        lambda: postprocessor.inference(small_net, batches(4, 0), progress=False),
    ):
        with pytest.raises(RuntimeError, match="net: its layers or weights"):
            call()
    LTSPostprocessor().postprocess(small_net, images)

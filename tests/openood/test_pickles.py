"""Pickled postprocessors as eval_ood.py keeps them: small, restored without a pass, out of date, damaged."""

from __future__ import annotations

import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from openood_support import PAIRS, SmallNet, loaders_of, through_file

from openood_adascale.errors import NotFittedError


def test_pickle_holds_numbers_only(small_evaluator):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    postprocessor = small_evaluator("adascale").postprocessor
    blob = pickle.dumps(postprocessor, pickle.HIGHEST_PROTOCOL)
    assert len(blob) < 20_000
    assert b"SmallNet" not in blob
    restored = pickle.loads(blob)
    assert type(restored) is AdaSCALEPostprocessor
    assert restored.settings == postprocessor.settings
    assert restored.hyperparam_search_done
    assert restored.APS_mode


@pytest.mark.parametrize("name", ["adascale", "optfs"])
def test_matching_pickle_needs_no_pass(small_evaluator, small_net, tmp_path, capfd, name):
    first = small_evaluator(name)
    restored = through_file(first.postprocessor, tmp_path / "x.pkl")
    small_net.images = 0
    second = small_evaluator(postprocessor=restored)
    assert small_net.images == 0
    assert "out of date" not in capfd.readouterr().err
    assert restored.settings == first.postprocessor.settings
    test = second.dataloader_dict["id"]["test"]
    got, want = (one.inference(small_net, test, progress=False)[1] for one in (restored, first.postprocessor))
    np.testing.assert_array_equal(got, want)
    other = SmallNet(1).eval()
    small_evaluator(net=other, postprocessor=restored)  # the live instance is fitted again
    assert other.images > 0


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("adascale", "setting", r"made with other settings than those of .*adascale\.yml"),
        ("adascale", "sweep", r"made with other settings than those of .*adascale\.yml"),
        ("adascale", "network", "made for other weights: its tensor '.*' has other values.*"),
        ("adascale", "user's file appears", r"made with other settings than those of .*adascale\.yml"),
        ("adascale", "images", "made with other OOD validation images"),
        ("adascale", "list", "made with other validation images"),
        ("optfs", "setting", r"made with other settings than those of .*optfs\.yml"),
        ("optfs", "list", "made with other training images"),
    ],
)
def test_out_of_date_pickle_is_named_in_one_line(
    small_evaluator, evaluator_kwargs, configs, tmp_path, capfd, name, change, reason
):
    root, data, net = tmp_path / "configs", tmp_path / "data", SmallNet(0).eval()
    shutil.copytree(evaluator_kwargs["data_root"], data)
    sweep = {"postprocessor_sweep": {"percentile_list": PAIRS[:2]}} if name == "adascale" else {}
    if change == "user's file appears":
        root.mkdir()
    else:
        configs(name, **sweep)
    places = {"config_root": str(root), "data_root": str(data)}
    restored = through_file(small_evaluator(name, net=net, **places).postprocessor, tmp_path / "x.pkl")
    if change == "network":
        net = SmallNet(1).eval()
    elif change == "images":
        shutil.copyfile(data / "images_classic/tin/val/0002.png", data / "images_classic/tin/val/0001.png")
    elif change == "list":
        split = "val" if name == "adascale" else "train"
        path = data / f"benchmark_imglist/cifar10/{split}_cifar10.txt"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    elif change == "sweep":
        configs(name, postprocessor_sweep={"percentile_list": PAIRS[1:]})
    else:
        configs(name, **sweep, **({"k2": 50} if name == "adascale" else {"fit_split": "val"}))
    capfd.readouterr()
    evaluator = small_evaluator(net=net, postprocessor=restored, **places)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "out of date" in line]
    assert f"'{name}' (results/<run>/s*/postprocessors/{name}.pkl) is out of date" in line
    assert re.search(rf"\({reason}\): fitting and searching again", line)
    fresh = small_evaluator(name, net=net, **places).postprocessor
    assert restored.settings == fresh.settings
    test = evaluator.dataloader_dict["id"]["test"]
    got, want = (one.inference(net, test, progress=False)[1] for one in (restored, fresh))
    np.testing.assert_array_equal(got, want)


def test_images_without_a_fingerprint_are_fitted_on_again(small_net, tmp_path, capfd):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    first = AdaSCALEPostprocessor()
    first.setup(small_net, *loaders_of(40, 0))
    restored = through_file(first, tmp_path / "adascale.pkl")
    restored.setup(small_net, *loaders_of(60, 3))
    assert len(restored.state) == 60
    assert "made with possibly other validation images" in capfd.readouterr().err


def test_pickling_after_the_weights_have_changed_is_an_error(small_net):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    postprocessor = AdaSCALEPostprocessor()
    assert not pickle.loads(pickle.dumps(postprocessor)).setup_flag
    postprocessor.setup(small_net, *loaders_of(40, 0))
    with torch.no_grad():
        small_net.fc.weight.mul_(2)
    with pytest.raises(NotFittedError, match="weights of SmallNet"):
        pickle.dumps(postprocessor)


def test_pickles_of_other_versions_and_damaged_ones_are_errors():
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    def refusal(stored):
        told = r"^the pickled postprocessor 'adascale'.*Delete it and run again"
        with pytest.raises(RuntimeError, match=told) as error:
            AdaSCALEPostprocessor.__new__(AdaSCALEPostprocessor).__setstate__(stored)
        return str(error.value)

    stored = AdaSCALEPostprocessor().__getstate__()
    assert "format 3" in refusal({**stored, "format": 3})
    assert "format None" in refusal({"net": 1})
    for junk in ("text", np.arange(3), torch.ones(2), None, [np.arange(3)]):
        refusal(junk)
        refusal({**stored, "format": junk})
        for key in ("configured", "settings"):
            assert "damaged or edited" in refusal({**stored, key: junk})
    for key in set(stored) - {"format"}:
        assert "damaged or edited" in refusal({k: v for k, v in stored.items() if k != key})

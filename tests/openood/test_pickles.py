"""Pickles of our postprocessors as eval_ood.py keeps them: small, for reports, out of date, of other versions."""

from __future__ import annotations

import pickle
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from openood_support import PAIRS, SmallNet, loaders_of, through_file, write_yml


def test_pickle_holds_numbers_only(small_evaluator):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    postprocessor = small_evaluator("adascale").postprocessor
    blob = pickle.dumps(postprocessor, pickle.HIGHEST_PROTOCOL)
    assert len(blob) < 20_000
    assert b"SmallNet" not in blob
    restored = pickle.loads(blob)
    assert isinstance(restored, AdaSCALEPostprocessor)
    assert restored.settings == postprocessor.settings
    assert restored.hyperparam_search_done
    assert restored.APS_mode
    assert not [v for v in vars(restored).values() if isinstance(v, torch.nn.Module)]


def test_matching_pickle_needs_no_pass(small_evaluator, small_net, tmp_path, capfd):
    first = small_evaluator("adascale", net=small_net)
    settings, state = first.postprocessor.settings, first.postprocessor.state
    restored = through_file(first.postprocessor, tmp_path / "adascale.pkl")
    small_net.images = 0
    capfd.readouterr()
    second = small_evaluator("adascale", net=small_net, postprocessor=restored)
    assert small_net.images == 0
    assert second.postprocessor.settings == settings
    assert torch.equal(second.postprocessor.state, state)
    assert "out of date" not in capfd.readouterr().err
    # A setup of the live instance, for another network, fits again.
    other = small_evaluator(net=SmallNet(1).eval(), postprocessor=restored)
    assert not torch.equal(other.postprocessor.state, state)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("setting", r"made with other settings than those of .*adascale\.yml"),
        ("sweep", r"made with other settings than those of .*adascale\.yml"),
        ("network", "made for other weights: its tensor '.*' has other values.*"),
        ("user's file appears", r"made with other settings than those of .*adascale\.yml"),
        ("images", "made with other OOD validation images"),
        ("list", "made with other validation images"),
    ],
)
def test_stale_pickle_is_named_in_one_line(
    small_evaluator, evaluator_kwargs, tmp_path, packaged, capfd, change, reason
):
    root, data, net = tmp_path / "configs", tmp_path / "data", SmallNet(0).eval()
    shutil.copytree(evaluator_kwargs["data_root"], data)
    sweep = {"percentile_list": PAIRS[:2]}
    if change == "user's file appears":
        root.mkdir()
    else:
        write_yml(root, "adascale", packaged / "adascale.yml", postprocessor_sweep=sweep)
    places = {"config_root": str(root), "data_root": str(data)}
    restored = through_file(
        small_evaluator("adascale", net=net, **places).postprocessor,
        tmp_path / "s0/postprocessors/adascale.pkl",
    )
    if change == "network":
        net = SmallNet(1).eval()
    elif change == "images":
        shutil.copyfile(data / "images_classic/tin/val/0002.png", data / "images_classic/tin/val/0001.png")
    elif change == "list":
        path = data / "benchmark_imglist/cifar10/val_cifar10.txt"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    else:
        new = {"percentile_list": PAIRS[1:]} if change == "sweep" else sweep
        write_yml(root, "adascale", packaged / "adascale.yml", k2=50, postprocessor_sweep=new)
    capfd.readouterr()
    evaluator = small_evaluator(net=net, postprocessor=restored, **places)
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if "out of date" in line]
    assert len(lines) == 1
    assert "'adascale' (results/<run>/s*/postprocessors/adascale.pkl) is out of date" in lines[0]
    assert re.search(rf"\({reason}\): fitting and searching again", lines[0])
    assert "Starting automatic parameter search" in printed.out
    fresh = small_evaluator("adascale", net=net, **places).postprocessor
    assert evaluator.postprocessor.settings == fresh.settings
    torch.testing.assert_close(evaluator.postprocessor.state, fresh.state)


def test_images_without_a_fingerprint_are_fitted_on_again(small_net, tmp_path, capfd):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    first = AdaSCALEPostprocessor()
    first.setup(small_net, *loaders_of(40, 0))
    restored = through_file(first, tmp_path / "adascale.pkl")
    restored.setup(small_net, *loaders_of(60, 3))
    assert len(restored.state) == 60
    assert "made with possibly other validation images" in capfd.readouterr().err


def test_pickling_after_the_weights_have_changed_is_an_error(small_net):
    from openood_adascale.errors import NotFittedError
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    postprocessor = AdaSCALEPostprocessor()
    assert not pickle.loads(pickle.dumps(postprocessor)).setup_flag
    postprocessor.setup(small_net, *loaders_of(40, 0))
    with torch.no_grad():
        small_net.fc.weight.mul_(2)
    with pytest.raises(NotFittedError, match="weights of SmallNet"):
        pickle.dumps(postprocessor)


def test_pickles_of_other_versions_and_damaged_ones_are_named():
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    def refusal(stored):
        with pytest.raises(
            RuntimeError, match=r"^the pickled postprocessor 'adascale'.*Delete it\s+and run again"
        ) as error:
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


def test_pickle_of_a_version_with_another_layout(tmp_path):
    """Its module's name stands for an error while the plugin is registered, as in OpenOOD's scripts."""
    import openood_adascale

    openood_adascale.register()
    path = tmp_path / "adascale.pkl"
    path.write_bytes(
        b"\x80\x04\x8c\x1eopenood_adascale.postprocessor\x8c\x15AdaSCALEPostprocessor\x93)\x81}\x8c\x06format"
        b"K\x02sb."
    )
    with path.open("rb") as file, pytest.raises(RuntimeError, match=r"another version.*Delete it"):
        pickle.load(file)
    openood_adascale.unregister()
    assert "openood_adascale.postprocessor" not in sys.modules
    openood_adascale.register()

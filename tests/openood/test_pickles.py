"""Pickles of our postprocessors as eval_ood.py keeps them: small, for reports, out of date, of other versions."""

from __future__ import annotations

import pickle
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from openood_postprocessing import (
    PAIRS,
    SmallNet,
    loaders_of,
    through_file,
    write_yml,
)


def test_pickle_holds_numbers_only(small_evaluator, tmp_path):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    evaluator = small_evaluator("adascale")
    postprocessor = evaluator.postprocessor
    postprocessor.state = torch.rand(5000, dtype=torch.float64)
    blob = pickle.dumps(postprocessor, pickle.HIGHEST_PROTOCOL)
    assert len(blob) < 100_000
    restored = pickle.loads(blob)
    assert isinstance(restored, AdaSCALEPostprocessor)
    assert torch.equal(restored.state, postprocessor.state)
    assert restored.settings == postprocessor.settings
    assert restored.hyperparam_search_done
    assert restored.APS_mode
    assert not [v for v in vars(restored).values() if isinstance(v, torch.nn.Module)]


def test_the_search_is_kept_for_reports(small_evaluator, tmp_path, packaged, capfd):
    from openood_adascale.reporting.searches import read_pickled_search

    sweep = {"percentile_list": PAIRS, "k2_list": [5, 50]}
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep=sweep)
    postprocessor = small_evaluator("adascale", config_root=str(tmp_path)).postprocessor
    printed = re.findall(r"auroc: ([\d.]+)", capfd.readouterr().out)
    restored = through_file(postprocessor, tmp_path / "adascale.pkl")
    table = read_pickled_search(tmp_path / "adascale.pkl").candidates
    assert set(table) == {"p_min", "p_max", "k2", "auroc"}
    np.testing.assert_allclose(table["auroc"], [100 * float(value) for value in printed], atol=1e-4)
    again = tmp_path / "again.pkl"
    through_file(restored, again)
    pd.testing.assert_frame_equal(read_pickled_search(again).candidates, table)


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


@pytest.mark.parametrize("change", ["setting", "sweep", "network", "user yml appears"])
def test_stale_pickle_is_said_and_made_anew(small_evaluator, tmp_path, packaged, capfd, change):
    root = tmp_path / "configs"
    net = SmallNet(0).eval()
    sweep = {"percentile_list": PAIRS[:2]}
    if change == "user yml appears":
        root.mkdir()
    else:
        write_yml(root, "adascale", packaged / "adascale.yml", postprocessor_sweep=sweep)
    restored = through_file(
        small_evaluator("adascale", net=net, config_root=str(root)).postprocessor,
        tmp_path / "s0/postprocessors/adascale.pkl",
    )
    if change == "network":
        net = SmallNet(1).eval()
    else:
        new = (
            {"postprocessor_sweep": {"percentile_list": PAIRS[1:]}}
            if change == "sweep"
            else {"postprocessor_sweep": sweep}
        )
        write_yml(root, "adascale", packaged / "adascale.yml", k2=50, **new)
    capfd.readouterr()
    evaluator = small_evaluator(net=net, postprocessor=restored, config_root=str(root))
    printed = capfd.readouterr()
    assert "'adascale' (results/<run>/s*/postprocessors/adascale.pkl) is out of date" in printed.err
    assert "Starting automatic parameter search" in printed.out
    fresh = small_evaluator("adascale", net=net, config_root=str(root)).postprocessor
    assert evaluator.postprocessor.settings == fresh.settings
    torch.testing.assert_close(evaluator.postprocessor.state, fresh.state)


def test_an_untold_pickle_is_out_of_date(small_net, tmp_path, capfd):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    first = AdaSCALEPostprocessor()
    first.setup(small_net, *loaders_of(40, 0))
    restored = through_file(first, tmp_path / "adascale.pkl")
    capfd.readouterr()
    restored.setup(small_net, *loaders_of(60, 3))
    assert len(restored.state) == 60
    assert "it does not show whether the validation images are the same" in capfd.readouterr().err


def test_changed_files_and_lists_are_other_images(
    small_evaluator, evaluator_kwargs, small_net, tmp_path, capfd
):

    data = tmp_path / "data"
    shutil.copytree(evaluator_kwargs["data_root"], data)
    first = small_evaluator("adascale", data_root=str(data))
    restored = through_file(first.postprocessor, tmp_path / "adascale.pkl")
    small_evaluator(postprocessor=restored, data_root=str(data))
    assert "out of date" not in capfd.readouterr().err
    changed = data / "images_classic/tin/val/0001.png"
    shutil.copyfile(data / "images_classic/tin/val/0002.png", changed)
    restored = through_file(first.postprocessor, tmp_path / "adascale.pkl")
    small_evaluator(postprocessor=restored, data_root=str(data))
    assert "made with other OOD validation images" in capfd.readouterr().err


def test_pickle_of_another_version(small_evaluator, tmp_path):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    postprocessor = AdaSCALEPostprocessor()
    stored = postprocessor.__getstate__()
    with pytest.raises(RuntimeError, match="format 99"):
        AdaSCALEPostprocessor.__new__(AdaSCALEPostprocessor).__setstate__({**stored, "format": 99})
    foreign = AdaSCALEPostprocessor.__new__(AdaSCALEPostprocessor)
    with pytest.raises(RuntimeError, match="format None"):
        foreign.__setstate__({"net": 1})


def test_a_pickle_that_lacks_something_is_named(small_evaluator, tmp_path):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    stored = small_evaluator("adascale").postprocessor.__getstate__()
    for key in set(stored) - {"format"}:
        for broken in (
            {k: v for k, v in stored.items() if k != key},
            *(
                {**stored, key: value}
                for value in ("text", [1, 2], None)
                if key in ("configured", "search", "made_for")
            ),
        ):
            with pytest.raises(
                RuntimeError, match=r"postprocessors/adascale\.pkl\): damaged.*Delete it and run again"
            ):
                AdaSCALEPostprocessor.__new__(AdaSCALEPostprocessor).__setstate__(broken)


def test_pickle_of_a_version_with_another_layout(tmp_path, monkeypatch):
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
    monkeypatch.delitem(sys.modules, "openood_adascale.postprocessor")

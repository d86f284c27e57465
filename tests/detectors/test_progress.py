"""Bars: shown with ``progress=True``, hidden with False and, by default, where nobody looks."""

from __future__ import annotations

import pytest
from tiny import make_images, make_loader

from openood_adascale import LTS, MSP, SCALE, AdaSCALE, BFAct, OptFS
from openood_adascale.detectors.search import search_aurocs

SWEEP = {"percentile_list": [[60, 70], [80, 90]]}


def loader(seed, count=50):
    return make_loader(make_images(count, seed))


CALLS = {
    "fit": (lambda network, progress: AdaSCALE(network).fit(loader(1), progress), {"Fit": 50}),
    "fit of a stream": (
        lambda network, progress: OptFS(network, learn_from="val").fit(loader(1), progress),
        {"Fit": 50},
    ),
    "predict": (lambda network, progress: MSP(network).predict_loader(loader(1), progress), {"Score": 50}),
    "batches": (
        lambda network, progress: list(MSP(network).predict_batches(loader(1), progress)),
        {"Score": 50},
    ),
    "calibrate": (lambda network, progress: MSP(network).calibrate(loader(1), progress), {"Score": 50}),
    "search": (
        lambda network, progress: AdaSCALE(network).search(loader(1), loader(2, 40), SWEEP, progress),
        {"ID validation": 50, "OOD validation": 40, "Candidates": 2},
    ),
    "search of what learns nothing": (
        lambda network, progress: SCALE(network).search(
            loader(1), loader(2, 40), {"percentile_list": [80, 85, 90]}, progress
        ),
        {"ID validation": 50, "OOD validation": 40, "Candidates": 3},
    ),
    "search of a stream": (
        lambda network, progress: BFAct(network).search(
            loader(1), loader(2, 40), {"percentile_list": [80, 85]}, progress, loader(3, 30)
        ),
        {"Images to learn from": 30, "ID validation": 50, "OOD validation": 40, "Candidates": 2},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_bars(name, network, capsys):
    call, bars = CALLS[name]
    for progress in (False, None):  # here nobody looks
        call(network, progress)
        assert capsys.readouterr().err == ""
    fresh = network.double()  # which the store in memory does not know
    call(fresh, True)
    told = capsys.readouterr().err
    for bar, count in bars.items():
        assert f"{bar}: 100%" in told, told
        assert f"{count}/{count}" in told
    if "search" not in name:
        assert "image" in told
    lines = [part for part in told.replace("\r", "\n").splitlines() if part.strip()]
    assert {line.partition(":")[0] for line in lines} == {*bars}


def test_what_learns_nothing_shows_nothing(network, capsys):
    LTS(network).fit(loader(1), progress=True)
    assert capsys.readouterr().err == ""
    assert not network.calls


def test_aurocs_of_candidates(capsys):
    import numpy as np

    scores = {"a": ([2.0, 3.0], [0.0, 1.0]), "b": ([0.0, 1.0], [2.0, 3.0]), "c": ([1.0, np.nan], [2.0])}
    given = {name: tuple(map(np.array, sides)) for name, sides in scores.items()}
    assert search_aurocs(["a", "b"], given.__getitem__) == [100.0, 0.0]
    with pytest.raises(ValueError, match=r"^candidate 'c': id_scores: 1 of 2 values are NaN or infinite"):
        search_aurocs(["a", "c"], given.__getitem__, False)
    assert capsys.readouterr().err == ""

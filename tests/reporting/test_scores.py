"""Saved scores: read as they were saved, refused where they are something else."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from report_files import RESNET50, SETS, Hostile, evaluator_scores, report, save_scores, triple

from openood_adascale.errors import ResultError
from openood_adascale.reporting.scores import read_npz, read_pickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("csid", [False, True])
def test_pickles_are_read_as_pickle_would(tmp_path, protocol, csid):
    scores = evaluator_scores(csid=csid)
    read = read_pickle(save_scores(tmp_path / "s.pkl", scores, protocol))
    assert set(read) == ({"ood", "fsood"} if csid else {"ood"})
    np.testing.assert_array_equal(read["ood"].id, scores["id"]["test"][1])
    for side, names in SETS.items():
        assert tuple(getattr(read["ood"], side)) == names
        for name in names:
            np.testing.assert_array_equal(getattr(read["ood"], side)[name], scores["ood"][side][name][1])
    assert read["ood"].accuracy == 75
    if csid:
        assert len(read["fsood"].id) == 300
        assert read["fsood"].accuracy == pytest.approx((150 + 50) / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: scores.pop("ood"), "not the scores of OpenOOD's Evaluator: KeyError"),
        (
            lambda scores: scores["id"].update(test=[1, 2, 3]),
            r"id test: expected arrays \(prediction, confidence, label\)",
        ),
        (
            lambda scores: scores["id"].update(test=[np.array([np.nan])] * 3),
            "id test: 1 of 1 confidences are NaN",
        ),
        (lambda scores: scores.update(id_preds=torch.zeros(3)), r"predictions of shape \(3,\)"),
    ],
)
def test_other_pickles(tmp_path, change, message):
    scores = evaluator_scores()
    change(scores)
    with pytest.raises(ResultError, match=message):
        read_pickle(save_scores(tmp_path / "s.pkl", scores))
    for other in ([1, 2], None, "text", {"ood": None}):
        with pytest.raises(ResultError, match="not the scores of OpenOOD's Evaluator"):
            read_pickle(save_scores(tmp_path / "s.pkl", other))
    (tmp_path / "s.pkl").write_bytes(pickle.dumps(scores)[:-50])
    with pytest.raises(ResultError, match=r"s\.pkl: not a score file"):
        read_pickle(tmp_path / "s.pkl")


def test_unfinished_evaluations(tmp_path):
    scores = evaluator_scores()
    scores["ood"]["far"] = dict.fromkeys(SETS["far"])
    assert read_pickle(save_scores(tmp_path / "s.pkl", scores))["ood"].far == {}
    scores["id"]["test"] = None
    assert read_pickle(save_scores(tmp_path / "s.pkl", scores)) == {}


@pytest.mark.drawn
def test_infinite_scores_keep_their_order(tmp_path):
    scores = evaluator_scores()
    scores["id"]["test"][1][:50] = np.inf
    read = read_pickle(save_scores(tmp_path / "s.pkl", scores))["ood"]
    assert np.isfinite(read.id).all()
    (tmp_path / "run" / "scores").mkdir(parents=True)
    save_scores(tmp_path / "run" / "scores" / "adascale.pkl", scores)
    with np.errstate(all="raise", under="ignore"):
        assert report(tmp_path / "run") == 0


@pytest.mark.drawn
def test_scores_of_all_magnitudes_are_drawn(tmp_path):
    scores = evaluator_scores()
    for entry in (scores["id"]["test"], *scores["ood"]["near"].values(), *scores["ood"]["far"].values()):
        entry[1] = np.where(np.arange(len(entry[1])) % 2, 5e-324, 1e308)
    save_scores(tmp_path / "scores" / "mine.pkl", scores)
    assert report(tmp_path) == 0


@pytest.mark.parametrize(
    "name", [3, None, ("a", 1), b"x", "", "a\nb", "nearood", "farood", "ninco", "\ud800"]
)
def test_set_names_that_are_no_names(tmp_path, name):
    folder = tmp_path / RESNET50
    save_scores(folder / "scores" / "msp.pkl", evaluator_scores())
    scores = evaluator_scores()
    scores["ood"]["far"][name] = scores["ood"]["far"]["textures"]
    path = save_scores(folder / "scores" / "adascale.pkl", scores)
    with pytest.raises(ResultError, match=r"far: the OOD set .*; expected"):
        read_pickle(path)
    assert report(folder) == 0
    assert "adascale.pkl" in (folder / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        lambda scores: scores.update(csid=["imagenet_v2"]),
        lambda scores: scores.update(id=np.arange(3)),
        lambda scores: scores.update(ood=np.arange(3)),
        lambda scores: scores.update(id_preds=[[1], [1, 2]], id_labels=[[1], [1, 2]]),
        lambda scores: scores.update(csid={("a",): None}),
        lambda scores: scores["id"].update(test=[np.arange(3)] * 3 + [1]),
    ],
)
def test_odd_score_pickles(tmp_path, change):
    scores = evaluator_scores()
    change(scores)
    with pytest.raises(ResultError, match=r"s\.pkl: "):
        read_pickle(save_scores(tmp_path / "s.pkl", scores))


def test_npz(tmp_path):
    rng = np.random.default_rng(0)
    for name, count, label in (("cifar10", 30, 4), ("cifar100", 20, -1), ("place365", 20, -1)):
        _, conf, label = triple(rng, count, 0, label)
        np.savez(tmp_path / name, pred=np.full(count, 4), conf=conf, label=label)
    read = read_npz(tmp_path)
    assert read is not None
    assert (list(read.near), list(read.far), len(read.id), read.accuracy) == (
        ["cifar100"],
        ["place365"],
        30,
        100,
    )
    np.savez(tmp_path / "bad", pred=np.array([Hostile(print)], dtype=object), conf=1, label=2)
    with pytest.raises(ResultError, match=r"bad\.npz"):
        read_npz(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"conf": np.array(["a"] * 30)},
        {"conf": np.zeros(30, complex)},
        {"label": np.full(29, 4)},
        {"label": np.array(4)},
        {"pred": np.full((2, 30), 4)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_damaged_npz(tmp_path, change):
    arrays = {"pred": np.full(30, 4), "conf": np.arange(30.0), "label": np.full(30, 4), **change}
    np.savez(tmp_path / "cifar10", **arrays)
    with pytest.raises(ResultError, match=r"cifar10\.npz"):
        read_npz(tmp_path)

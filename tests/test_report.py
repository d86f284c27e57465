"""report: reads what OpenOOD leaves, executes nothing that a file holds, writes one page about it."""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import os
import pickle
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from openood_adascale import report
from openood_adascale.results import METRICS, ResultError, read_search
from openood_adascale.runs import collect
from openood_adascale.scores import fpr95_auroc, load_npz, load_pickle

SETS = {"near": ("ssb_hard", "ninco"), "far": ("inaturalist", "textures", "openimage_o")}
RESNET50 = "imagenet_resnet50_tvsv1_base_default"
CIFAR10 = "cifar10_resnet18_32x32_base_e100_lr0.1_default"


def triple(rng, count: int, mean: float, label: int) -> list[np.ndarray]:
    """(prediction, confidence, label), as inference() returns them."""
    return [rng.integers(0, 10, count), rng.normal(mean, 1, count).astype(np.float32), np.full(count, label)]


def evaluator_scores(quality: float = 2.0, csid: bool = False, seed: int = 0) -> dict:
    """Evaluator.scores after eval_ood(), arrays and tensors in the places where OpenOOD has them."""
    rng = np.random.default_rng(seed)
    labels = torch.arange(200) % 10
    return {
        "id": {"train": None, "val": None, "test": triple(rng, 200, quality, 1)},
        "csid": {"imagenet_v2": triple(rng, 100, 0.5, 1) if csid else None},
        "ood": {
            "val": None,
            **{side: {name: triple(rng, 150, 0, -1) for name in names} for side, names in SETS.items()},
        },
        "id_preds": torch.where(torch.arange(200) < 150, labels, labels + 1),
        "id_labels": labels,
        "csid_preds": {"imagenet_v2": torch.zeros(100, dtype=torch.int64) if csid else None},
        "csid_labels": {"imagenet_v2": torch.arange(100) % 2 if csid else None},
    }


def save_scores(path: Path, scores: object, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickle.dump(scores, file, protocol)
    return path


def save_table(path: Path, value: float, std: float | None = None) -> Path:
    """A result CSV with AUROC ``value`` and FPR@95 100 - ``value`` everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [*SETS["near"], "nearood", *SETS["far"], "farood"]
    cells = [100 - value, value, 90.0, 50.0, 76.19]
    text = [f"{cell:.2f}" + ("" if std is None else f" ± {std:.2f}") for cell in cells]
    pd.DataFrame([text] * len(rows), index=rows, columns=list(METRICS)).to_csv(path)
    return path


def save_search(path: Path) -> Path:
    percentiles = (60, 75, 85)
    rows = [
        {"percentile": [low, high], "k2": k2, "o": 0.05, "auroc": 90 - abs(low - 75) / 9 - high / 50 - k2}
        for low in percentiles for high in percentiles if low <= high for k2 in (0.5, 1.0)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def run(*words) -> int:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return report.run(parser.parse_args([str(word) for word in words]))


# Saved scores


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("csid", [False, True])
def test_pickles_are_read_as_pickle_would(tmp_path, protocol, csid):
    scores = evaluator_scores(csid=csid)
    read = load_pickle(save_scores(tmp_path / "s.pkl", scores, protocol))
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


def test_numpy_1_pickles():
    """NumPy 1 has its core in numpy.core, NumPy 2 in numpy._core: both are read, whichever is installed."""
    from openood_adascale.scores import _ScoreUnpickler

    for protocol, core in ((4, b"numpy.core"), (5, b"numpy.core"), (4, b"numpy._core"), (5, b"numpy._core")):
        data = pickle.dumps({"a": np.arange(3.0)}, protocol, fix_imports=False)
        found = re.search(rb"numpy\.(_)?core", data)
        assert found
        # A short string's length stands in the byte before it, and that of the frame is not checked here.
        old = data[found.start() - 1 : data.index(b"\x94", found.start())]
        new = old[1:].replace(found[0], core)
        data = data.replace(old, bytes([len(new)]) + new)
        data = re.sub(rb"^(\x80.)\x95.{8}", rb"\1", data, flags=re.DOTALL)
        value = _ScoreUnpickler(io.BytesIO(data)).load()["a"]
        np.testing.assert_array_equal(getattr(value, "value", value), np.arange(3.0))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).reshape(2, 3),
        torch.arange(10)[3:7],
        torch.tensor([True, False]),
        torch.arange(4, dtype=torch.int32),
        torch.rand(3, dtype=torch.float64),
        torch.arange(0),
    ],
)
def test_tensors(tensor):
    from openood_adascale.scores import _ScoreUnpickler

    read = _ScoreUnpickler(io.BytesIO(pickle.dumps(tensor, 5))).load()
    np.testing.assert_array_equal(read, tensor.numpy())


class Hostile:
    """Pickles to a call of ``function``, and would write ``marker`` when loaded carelessly."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda marker: Hostile(os.system, f"touch {marker}"), "system"),
        (lambda marker: Hostile(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        (lambda marker: Hostile(open, str(marker), "w"), "open"),
        (lambda marker: Hostile(np.save, str(marker), 1), "save"),
        (lambda marker: Hostile(np.load, str(marker)), "load"),
        (lambda marker: Hostile(getattr, np.ndarray, "tofile"), "getattr"),
        (lambda marker: Hostile(torch.load, str(marker)), "load"),
    ],
)
def test_hostile_pickles_execute_nothing(tmp_path, protocol, make, named):
    marker = tmp_path / "marker"
    scores = evaluator_scores()
    scores["ood"]["near"]["ssb_hard"][1] = make(marker)
    path = save_scores(tmp_path / RESNET50 / "scores" / "msp.pkl", scores, protocol)
    with pytest.raises(
        ResultError, match=rf"msp\.pkl: not a score file .*{named}.*nothing of it was executed"
    ):
        load_pickle(path)
    assert run(tmp_path / RESNET50) == 2
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["msp.pkl"]


def test_a_hostile_tensor_executes_nothing(tmp_path):
    """A tensor's storage is bytes in which torch.load would find pickles of their own."""
    marker = tmp_path / "marker"
    storage = io.BytesIO()
    torch.save(Hostile(os.system, f"touch {marker}"), storage, _use_new_zipfile_serialization=False)

    class Tensor:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (storage.getvalue(),)

    scores = {**evaluator_scores(), "id_preds": Tensor()}
    with pytest.raises(ResultError, match="system"):
        load_pickle(save_scores(tmp_path / "s.pkl", scores))
    assert not marker.exists()


def test_no_names_by_the_back_door(tmp_path):
    """Objects, attributes and dotted names are refused as well, and nothing lasting is set."""
    from openood_adascale.scores import _ScoreUnpickler

    for payload in (
        b"cnumpy\nndarray.__class__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        b"cbuiltins\ngetattr\n.",
        b"copenood_adascale.scores\n_ScoreUnpickler\n.",
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"cnumpy\nndarray\n(I3\ntR.",
        b"cnumpy\ndtype\n}S'x'\nI1\nsb.",
        b"Pid\n.",
    ):
        (tmp_path / "s.pkl").write_bytes(payload)
        with pytest.raises(ResultError, match=r"not a score file that can be read safely|not the scores of"):
            load_pickle(tmp_path / "s.pkl")
    assert not vars(_ScoreUnpickler._dtype)


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
        load_pickle(save_scores(tmp_path / "s.pkl", scores))
    for other in ([1, 2], None, "text", {"ood": None}):
        with pytest.raises(ResultError, match="not the scores of OpenOOD's Evaluator"):
            load_pickle(save_scores(tmp_path / "s.pkl", other))
    (tmp_path / "s.pkl").write_bytes(pickle.dumps(scores)[:-50])
    with pytest.raises(ResultError, match=r"s\.pkl: not a score file"):
        load_pickle(tmp_path / "s.pkl")


def test_unfinished_evaluations(tmp_path):
    scores = evaluator_scores()
    scores["ood"]["far"] = dict.fromkeys(SETS["far"])
    assert load_pickle(save_scores(tmp_path / "s.pkl", scores))["ood"].far == {}
    scores["id"]["test"] = None
    assert load_pickle(save_scores(tmp_path / "s.pkl", scores)) == {}


def test_infinite_scores_keep_their_order(tmp_path):
    scores = evaluator_scores()
    scores["id"]["test"][1][:50] = np.inf
    read = load_pickle(save_scores(tmp_path / "s.pkl", scores))["ood"]
    assert np.isfinite(read.id).all()
    (tmp_path / "run" / "scores").mkdir(parents=True)
    save_scores(tmp_path / "run" / "scores" / "adascale.pkl", scores)
    with np.errstate(all="raise", under="ignore"):
        assert run(tmp_path / "run") == 0


def test_npz(tmp_path):
    rng = np.random.default_rng(0)
    for name, count, label in (("cifar10", 30, 4), ("cifar100", 20, -1), ("place365", 20, -1)):
        _, conf, label = triple(rng, count, 0, label)
        np.savez(tmp_path / name, pred=np.full(count, 4), conf=conf, label=label)
    read = load_npz(tmp_path)
    assert read is not None
    assert (list(read.near), list(read.far), len(read.id), read.accuracy) == (
        ["cifar100"],
        ["place365"],
        30,
        100,
    )
    np.savez(tmp_path / "bad", pred=np.array([Hostile(print)], dtype=object), conf=1, label=2)
    with pytest.raises(ResultError, match=r"bad\.npz"):
        load_npz(tmp_path)


def test_metrics_have_openoods_meaning():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 1000), rng.normal(0, 1, 400)
    fpr, auroc = fpr95_auroc(inside, outside)
    truth = np.r_[np.zeros(1000), np.ones(400)]
    assert auroc == pytest.approx(100 * roc_auc_score(truth, -np.r_[inside, outside]))
    threshold = np.sort(outside)[int(0.95 * 400) - 1]
    assert fpr == pytest.approx(100 * (inside <= threshold).mean(), abs=0.2)


# Search tables


def test_search_tables(tmp_path):
    auroc, swept = read_search(save_search(tmp_path / "search_adascale.csv"))
    assert list(auroc.index) == list(auroc.columns) == [60, 75, 85]
    assert auroc.isna().sum().sum() == 3
    assert auroc.loc[75, 75] == pytest.approx(88.0)  # the better of the two k2
    assert swept == ["k2"]
    plain = tmp_path / "search_b.csv"
    plain.write_text("p_min,p_max,auroc\n60,80,90.5\n")
    assert read_search(plain)[0].loc[60, 80] == 90.5
    plain.write_text('percentile,auroc\n"[np.float64(60.0), np.float64(80.5)]",90.5\n')
    assert read_search(plain)[0].loc[60, 80.5] == 90.5
    for text, message in (
        ("p_min,auroc\n1,2\n", "expected columns"),
        ("p_min,p_max,auroc\n1,2,x\n", "not a search table"),
        ("p_min,p_max,auroc\n1,2,200\n", "column auroc"),
        ("", "not a search table"),
    ):
        plain.write_text(text)
        with pytest.raises(ResultError, match=message):
            read_search(plain)


# The page


class Page(HTMLParser):
    """Collects what a page links to, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.sources, self.tags, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def full_run(tmp_path_factory) -> Path:
    """A run's folder with tables, scores and a search, reported on."""
    folder = tmp_path_factory.mktemp("results") / RESNET50
    for name, value in {"msp": 70.0, "scale": 85.0, "adascale": 90.0, "knn": 60.0}.items():
        save_table(folder / "ood" / f"{name}.csv", value)
    save_scores(folder / "scores" / "msp.pkl", evaluator_scores(1))
    save_scores(folder / "scores" / "adascale.pkl", evaluator_scores(3, csid=True))
    save_search(folder / "search_adascale.csv")
    assert run(folder) == 0
    return folder


def test_the_page_is_whole_and_needs_no_network(full_run):
    out = full_run / "report"
    page = Page(out / "report.html")
    pngs = sorted(path.name for path in out.glob("*.png"))
    assert pngs == [
        "methods_fsood.png",  # from adascale's scores alone
        "methods_ood.png",
        "roc_fsood.png",
        "roc_ood.png",
        "scores_fsood_AdaSCALE-A.png",
        "scores_ood_AdaSCALE-A.png",
        "scores_ood_MSP.png",
        "search_adascale.png",
    ]
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    images = [base64.b64decode(source.partition(",")[2]) for source in page.sources]
    assert sorted(images) == sorted((out / name).read_bytes() for name in pngs)
    assert all(Image.open(io.BytesIO(image)).width > 300 for image in images)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "http:" not in (out / "report.html").read_text(encoding="utf-8")
    for words in ("AdaSCALE-A", "KNN", "ssb_hard", "best 88.00 at p_min 75, p_max 75", "the best over k2"):
        assert words in page.text
    # Tables and pickles were made up apart here: that must be said.
    assert "one of the two is older" in page.text


def test_a_second_report_is_the_same(full_run):
    """Its own copies and pictures are not taken for results."""
    before = {path: path.read_bytes() for path in sorted(full_run.rglob("*")) if path.is_file()}
    assert run(full_run, "-o", full_run / "report") == 0
    assert before == {path: path.read_bytes() for path in sorted(full_run.rglob("*")) if path.is_file()}


def test_markdown_marks_the_best(full_run):
    lines = (full_run / "report" / "report.md").read_text(encoding="utf-8").splitlines()
    assert "| Method | Near FPR@95 ↓ | Near AUROC ↑ | Far FPR@95 ↓ | Far AUROC ↑ | ID accuracy ↑ |" in lines
    assert "| AdaSCALE-A | **10.00** | **90.00** | **10.00** | **90.00** | 76.19 |" in lines
    assert "| MSP | 30.00 | 70.00 | 30.00 | 70.00 | 76.19 |" in lines
    averages = lines[lines.index("**Averages (%)**") + 4 :]
    assert [line.split(" | ")[0] for line in averages[:4]] == ["| AdaSCALE-A", "| SCALE", "| MSP", "| KNN"]


def test_leaderboard(tmp_path):
    folder = tmp_path / CIFAR10
    source = save_table(folder / "ood" / "adascale.csv", 77.28, 0.29)
    assert run(folder, "--description", "100 epochs; mine", "--outlier-data", "Yes") == 0
    out = folder / "report" / "leaderboard"
    expected = {
        "Training": "CrossEntropy",
        "Postprocessor": "AdaSCALE-A",
        "Near-OOD_AUROC": "77.28 ± 0.29",
        "Far-OOD_AUROC": "77.28 ± 0.29",
        "ID_Accuracy": "76.19 ± 0.29",
        "Outlier_Data": "Yes",
        "Arch": "ResNet18",
        "Additional_Description": "100 epochs; mine",
    }
    assert json.loads((out / "cifar10.json").read_text(encoding="utf-8")) == [expected]
    with (out / "cifar10.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row == expected
    assert list(row) == list(report.LEADERBOARD_FIELDS)
    assert (out / "ood" / "AdaSCALE-A.csv").read_bytes() == source.read_bytes()


def test_leaderboard_names_benchmarks_as_openood_does(tmp_path):
    for folder, name in (
        (RESNET50, "imagenet1k_fsood"),
        ("imagenet200_resnet18_224x224_base_e90_lr0.1_default", "imagenet200_fsood"),
        ("somewhere", "results_fsood"),
    ):
        save_table(tmp_path / folder / "fsood" / "msp.csv", 70)
        assert run(tmp_path / folder) == 0
        assert (tmp_path / folder / "report" / "leaderboard" / f"{name}.csv").is_file()


@pytest.mark.parametrize("what", ["tables", "scores", "search", "near only"])
def test_partial_folders(tmp_path, what):
    folder = tmp_path / RESNET50
    folder.mkdir()
    if what == "tables":
        save_table(folder / "ood" / "msp.csv", 70)
    elif what == "scores":
        save_scores(folder / "scores" / "msp.pkl", evaluator_scores())
    elif what == "search":
        save_search(folder / "search_adascale.csv")
    else:
        scores = evaluator_scores()
        scores["ood"]["far"] = dict.fromkeys(SETS["far"])
        save_scores(folder / "scores" / "msp.pkl", scores)
    assert run(folder) == 0
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    if what == "near only":
        assert "MSP (ood): no leaderboard entry" in text


def test_scores_without_a_table_give_the_figures(tmp_path):
    """Three runs s0, s1, s2 with --save-score only: mean and standard deviation as eval_ood.py has them."""
    folder = tmp_path / CIFAR10
    expected = []
    for seed in range(3):
        scores = evaluator_scores(seed=seed)
        save_scores(folder / f"s{seed}" / "scores" / "ebo.pkl", scores)
        inside = scores["id"]["test"][1]
        values = [fpr95_auroc(inside, scores["ood"]["near"][name][1])[1] for name in SETS["near"]]
        expected.append(np.mean(values))
    (method,) = collect(folder).methods["ood"]
    assert method.value("nearood", "AUROC") == (
        pytest.approx(np.mean(expected)),
        pytest.approx(np.std(expected)),
    )
    assert method.value("nearood", "ACC") == (75, 0)
    assert run(folder) == 0
    assert "first of its runs" in (folder / "report" / "report.html").read_text(encoding="utf-8")


def test_main_py_seeds_are_averaged(tmp_path):
    for seed, value in enumerate((60.0, 70.0)):
        path = save_table(tmp_path / f"cifar10_resnet18_32x32_test_ood_ood_msp_0/s{seed}/ood/ood.csv", value)
        path.write_text("dataset" + path.read_text())
    run_ = collect(tmp_path)
    (method,) = run_.methods["ood"]
    assert method.label == "MSP"
    assert method.value("farood", "AUROC") == (65, 5)
    assert any("mean ± standard deviation over" in note for note in run_.notes)


def test_several_runs_are_not_mixed(tmp_path, capsys):
    save_table(tmp_path / RESNET50 / "ood" / "msp.csv", 70)
    save_table(tmp_path / "imagenet_regnet_tvsv1_base_default" / "ood" / "msp.csv", 80)
    assert run(tmp_path) == 2
    assert "holds several runs (imagenet regnet-y-16gf; imagenet resnet50)" in capsys.readouterr().err


def test_nothing_to_report(tmp_path, capsys):
    assert run(tmp_path) == 2
    assert "nothing to report; expected" in capsys.readouterr().err
    assert run(tmp_path / "absent") == 2


def test_names_from_files_are_only_text(tmp_path):
    folder = tmp_path / RESNET50
    save_table(folder / "ood" / "<b>$x_$|&.csv", 70)
    save_scores(folder / "scores" / "<b>$x_$|&.pkl", evaluator_scores())
    assert run(folder) == 0
    assert "b" not in Page(folder / "report" / "report.html").tags
    assert "<b>$x_$\\|&" in (folder / "report" / "report.md").read_text(encoding="utf-8")


def test_more_methods_than_colours(tmp_path):
    folder = tmp_path / RESNET50
    for index in range(12):
        save_table(folder / "ood" / f"method{index}.csv", 60 + index, std=0.5)
    for index in (0, 11):
        save_scores(folder / "scores" / f"method{index}.pkl", evaluator_scores(index / 4))
    save_table(folder / "ood" / "adascale.csv", 50)
    assert run(folder) == 0


def test_no_global_state(tmp_path):
    """Neither pyplot nor Matplotlib's settings: the report can be made inside anyone's notebook."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    save_table(tmp_path / "ood" / "msp.csv", 70)
    assert run(tmp_path) == 0
    assert dict(matplotlib.rcParams) == before

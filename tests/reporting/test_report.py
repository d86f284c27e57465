"""The report: one page, whole, about what is there."""

from __future__ import annotations

import base64
import copy
import io
from pathlib import Path

import pytest
from PIL import Image
from report_files import (
    RESNET50,
    SETS,
    Page,
    evaluator_scores,
    report,
    save_scores,
    save_search,
    save_table,
)

from openood_adascale.reporting.gather import collect
from openood_adascale.reporting.report import write


@pytest.fixture(scope="module")
def full_run(tmp_path_factory) -> Path:
    """A run's folder with tables, scores and a search, reported on."""
    folder = tmp_path_factory.mktemp("results") / RESNET50
    for name, value in {"msp": 70.0, "scale": 85.0, "adascale": 90.0, "knn": 60.0}.items():
        save_table(folder / "ood" / f"{name}.csv", value)
    save_scores(folder / "scores" / "msp.pkl", evaluator_scores(1))
    save_scores(folder / "scores" / "adascale.pkl", evaluator_scores(3, csid=True))
    save_search(folder / "search_adascale.csv")
    assert report(folder) == 0
    return folder


@pytest.mark.drawn
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


@pytest.mark.drawn
def test_a_second_report_is_the_same(full_run):
    """Its own copies and pictures are not taken for results."""
    before = {path: path.read_bytes() for path in sorted(full_run.rglob("*")) if path.is_file()}
    assert report(full_run, "-o", full_run / "report") == 0
    assert before == {path: path.read_bytes() for path in sorted(full_run.rglob("*")) if path.is_file()}


def test_markdown_marks_the_best(full_run):
    lines = (full_run / "report" / "report.md").read_text(encoding="utf-8").splitlines()
    assert "| Method | Near FPR@95 ↓ | Near AUROC ↑ | Far FPR@95 ↓ | Far AUROC ↑ | ID accuracy ↑ |" in lines
    assert "| AdaSCALE-A | **10.00** | **90.00** | **10.00** | **90.00** | 76.19 |" in lines
    assert "| MSP | 30.00 | 70.00 | 30.00 | 70.00 | 76.19 |" in lines
    averages = lines[lines.index("**Averages (%)**") + 4 :]
    names = [line.split(" | ")[0] for line in averages[:5]]
    assert names == ["| AdaSCALE-A", "| SCALE", "| *AdaSCALE-L (published)*", "| MSP", "| KNN"]


@pytest.mark.parametrize(
    "what", ["tables", "scores", "search", pytest.param("near only", marks=pytest.mark.drawn)]
)
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
    assert report(folder) == 0
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    if what == "near only":
        assert "MSP (ood): no leaderboard entry" in text


@pytest.mark.drawn
def test_more_methods_than_colours(tmp_path):
    folder = tmp_path / RESNET50
    for index in range(12):
        save_table(folder / "ood" / f"method{index}.csv", 60 + index, std=0.5)
    for index in (0, 11):
        save_scores(folder / "scores" / f"method{index}.pkl", evaluator_scores(index / 4))
    save_table(folder / "ood" / "adascale.csv", 50)
    assert report(folder) == 0


def test_no_global_state(tmp_path):
    """Neither pyplot nor Matplotlib's settings: the report can be made inside anyone's notebook."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    save_table(tmp_path / "ood" / "msp.csv", 70)
    assert report(tmp_path) == 0
    assert dict(matplotlib.rcParams) == before


def test_a_run_is_reported_twice_and_stays_what_it_was(tmp_path):
    folder = tmp_path / RESNET50
    save_table(folder / "ood" / "msp.csv", 70)
    scores = evaluator_scores()
    scores["ood"]["far"] = dict.fromkeys(SETS["far"])
    save_scores(folder / "scores" / "adascale.pkl", scores)  # no leaderboard entry: a note
    run = collect(folder)
    notes, methods = list(run.notes), copy.copy(run.methods)
    first, second = (write(run, tmp_path / name).read_bytes() for name in "ab")
    assert first == second
    assert b"no leaderboard entry" in first
    assert (run.notes, run.methods) == (notes, methods)

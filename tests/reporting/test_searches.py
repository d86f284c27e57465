"""Search tables, as CSV and in pickled postprocessors."""

from __future__ import annotations

import importlib.util
import re

import numpy as np
import pandas as pd
import pytest
import torch
from report_files import (
    GOOD_SEARCH,
    RESNET50,
    Page,
    postprocessor_pickle,
    report,
    save_scores,
    save_search,
    save_table,
)
from tiny import make_loader

from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import ResultError
from openood_adascale.evaluation.benchmark import Benchmark
from openood_adascale.evaluation.evaluate import evaluate
from openood_adascale.reporting.gather import collect, from_results
from openood_adascale.reporting.identify import Identity
from openood_adascale.reporting.report import write
from openood_adascale.reporting.runs import Run
from openood_adascale.reporting.searches import Search, read_pickled_search, read_search
from openood_adascale.reporting.unpickling import POSTPROCESSORS


def test_search_tables(tmp_path):
    search = read_search(save_search(tmp_path / "search_adascale.csv"))
    auroc = search.percentile_map()
    assert list(auroc.index) == list(auroc.columns) == [60, 75, 85]
    assert auroc.isna().sum().sum() == 3
    assert auroc.loc[75, 75] == pytest.approx(88.0)  # the better of the two k2
    assert search.searched() == ["k2", "p_min", "p_max"]
    plain = tmp_path / "search_b.csv"
    plain.write_text("p_min,p_max,auroc\n60,80,90.5\n")
    assert read_search(plain).percentile_map().loc[60, 80] == 90.5
    plain.write_text('percentile,auroc\n"[np.float64(60.0), np.float64(80.5)]",90.5\n')
    assert read_search(plain).percentile_map().loc[60, 80.5] == 90.5
    for text, message in (
        ("p_min,auroc\n1,2\n", "expected columns"),
        ("p_min,p_max,auroc\n1,2,x\n", "not a search table"),
        ("p_min,p_max,auroc\n1,2,200\n", "column auroc"),
        ("", "not a search table"),
    ):
        plain.write_text(text)
        with pytest.raises(ResultError, match=message):
            read_search(plain)


def test_searches_of_one_name_are_all_shown(tmp_path):
    for place in (".", "a", "b"):
        (tmp_path / place).mkdir(exist_ok=True)
        save_search(tmp_path / place / "search_mine.csv")
    assert sorted(collect(tmp_path).searches) == ["mine [.]", "mine [a]", "mine [b]"]


@pytest.mark.parametrize(
    "search",
    [
        {"p_min": [1, 2], "p_max": [3], "auroc": [1, 2]},
        "text",
        7,
        [1, 2],
        {"p_min": 60, "p_max": 70, "auroc": 80},
        {"p_min": [[60], [65]], "p_max": [[70], [75]], "auroc": [[80], [81]]},
        {"p_min": [60], "p_max": [70], "auroc": [{"a": 1}]},
        {"p_min": ["a"], "p_max": ["b"], "auroc": [80.0]},
        {"p_min": [None], "p_max": [70], "auroc": [80.0]},
        {"p_min": [60], "p_max": [1e9], "auroc": [80.0]},
        {"p_min": [60], "p_max": [70]},
        {"p_min": [60], "p_max": [70], "auroc": [float("nan")]},
        {1: [60], "p_min": [60], "p_max": [70], "auroc": [80.0]},
        {"k2": [[1, 2]], "auroc": [80.0]},
        np.arange(3),
    ],
    ids=lambda search: repr(search)[:40],
)
def test_a_damaged_search_in_a_pickle_is_left_out(tmp_path, search):
    folder = tmp_path / RESNET50
    save_table(folder / "ood" / "msp.csv", 70)
    postprocessor_pickle(folder / "postprocessors" / "good.pkl", GOOD_SEARCH)
    postprocessor_pickle(folder / "postprocessors" / "bad.pkl", search)
    assert report(folder) == 0
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "left out: " in text
    assert "bad.pkl" in text
    assert "good.pkl" not in text
    assert [path.name for path in (folder / "report").glob("search_*")] == ["search_good.png"]


def test_a_truncated_postprocessor_is_noted_where_it_is_ours(tmp_path):
    folder = tmp_path / RESNET50
    save_table(folder / "ood" / "msp.csv", 70)
    bad = postprocessor_pickle(folder / "postprocessors" / "bad.pkl", GOOD_SEARCH)
    bad.write_bytes(bad.read_bytes()[:-10])
    save_scores(folder / "postprocessors" / "foreign.pkl", torch.nn.Linear(2, 2))
    postprocessor_pickle(folder / "postprocessors" / "none.pkl", {})
    assert report(folder) == 0
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "bad.pkl" in text
    assert "foreign.pkl" not in text
    assert "none.pkl" not in text


@pytest.mark.parametrize("count", [2, 200])
def test_a_search_that_no_heat_map_fits(tmp_path, count):
    """Without percentiles, or with too many of them, its best candidates are listed."""
    folder = tmp_path / RESNET50
    folder.mkdir()
    if count == 2:
        (folder / "search_optfs.csv").write_text("bins,score,auroc\n50,Energy,80\n100,Energy,82.5\n")
        postprocessor_pickle(folder / "postprocessors" / "lts.pkl", {"k2": [1.0, 2.0], "auroc": [70.0, 71.0]})
    else:
        rows = "".join(f"{50 + i / 10},{60 + i / 10},{80 + i / 100}\n" for i in range(count))
        (folder / "search_optfs.csv").write_text("p_min,p_max,auroc\n" + rows)
    assert report(folder) == 0
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    page = Page(folder / "report" / "report.html")
    if count == 2:
        assert "| 100 | **82.50** |" in text  # score was not searched
        assert "| 2 | **71.00** |" in text
        assert "82.50" in page.text
    else:
        assert "**81.99**" in text
        assert "the best 20 of 200" in text
    assert not page.sources


def test_a_postprocessor_of_another_version_is_noted(tmp_path):
    folder = tmp_path / RESNET50
    save_table(folder / "ood" / "msp.csv", 70)
    old = postprocessor_pickle(
        folder / "postprocessors" / "old.pkl", GOOD_SEARCH, "openood_adascale.postprocessor"
    )
    with pytest.raises(ResultError, match="made by another version of openood-adascale: delete it"):
        read_pickled_search(old)
    assert report(folder) == 0
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert r"old.pkl: not a postprocessor that can be read safely: made by another version" in text


def test_the_module_that_pickled_postprocessors_name_is_there():
    assert importlib.util.find_spec(POSTPROCESSORS) is not None


def test_only_pairs_of_percentiles_are_drawn(network, id_images, ood_images, tmp_path):
    """A method of one percentile keeps it; and only AdaSCALE's searches contain SCALE's and LTS's."""
    sweeps = {
        "scale": {"percentile_list": [80, 85]},
        "optfs": {"percentile_list": [[0.1, 99], [1, 99]]},
        "adascale": {"percentile_list": [[60, 80], [80, 80]]},
        "adascale_logit": {"percentile_list": [[60, 80], [80, 80]]},
    }
    loader = make_loader(id_images)
    unknown = make_loader(ood_images)
    data = Benchmark(loader, {"a": unknown}, {"b": unknown}, loader, unknown, loader)
    results = {
        name: evaluate(METHODS[name].detector(network, **METHODS[name].defaults), data, sweep=sweep)
        for name, sweep in sweeps.items()
    }
    run = from_results({**results, "my own": results["optfs"], "AdaSCALE, k1 = 1": results["adascale"]})
    searches = {name: search.candidates for name, search in run.searches.items()}
    assert list(searches["scale"]["percentile"]) == [80, 85]
    assert "p_min" not in searches["scale"]
    assert run.searches["scale"].percentile_map() is None
    assert list(searches["optfs"]["p_min"]) == [0.1, 1]
    assert "percentile" not in searches["adascale"]
    # The same from a CSV, in which pairs are text.
    for name, result in results.items():
        result.search.to_csv(tmp_path / f"search_{name}.csv", index=False)
        assert list(read_search(tmp_path / f"search_{name}.csv").candidates) == list(searches[name])
    write(run, tmp_path)
    assert {path.stem for path in tmp_path.glob("search_*.png")} == {
        "search_optfs", "search_adascale", "search_adascale_logit", "search_my_own", "search_AdaSCALE_k1_1"
    }  # fmt: skip
    assert "| percentile | AUROC |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    captions = re.findall(
        r"<figcaption>([^<]*p_min[^<]*)</figcaption>", (tmp_path / "report.html").read_text()
    )
    assert len(captions) == 5
    for caption in captions:
        assert ("SCALE for variant A, LTS for variant L" in caption) == caption.startswith("AdaSCALE")
        assert ("fixed percentile" in caption) == caption.startswith("AdaSCALE")


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [("adascale", True), ("adascale_joint [a]", True), ("adascale_logit_vit_b_16", True), ("AdaSCALE-L", True),
     ("optfs", False), ("mine", False), ("scale", False), ("adascaler", False)],
)  # fmt: skip
def test_whose_search_contains_the_fixed_percentiles(tmp_path, name, is_ours):
    save_search(tmp_path / f"search_{name}.csv")
    assert report(tmp_path) == 0
    text = Page(tmp_path / "report" / "report.html").text
    assert "best 88.00 at p_min 75, p_max 75" in text
    assert ("fixed percentile (dotted: SCALE" in text) == is_ours


def test_percentiles_that_are_neither_numbers_nor_pairs_are_shown_as_they_are(tmp_path):
    """Of a method that takes one number or several: text, but for the AUROC."""
    mixed = pd.DataFrame({"percentile": [[60.0, 80.0], 70.0, [1, 2, 3]], "auroc": [80.0, 81.0, 82.0]})
    search = Search.checked(mixed, "here")
    assert search.percentile_map() is None
    assert search.searched() == ["percentile"]
    assert list(search.candidates["percentile"].astype(str)) == ["[60.0, 80.0]", "70.0", "[1, 2, 3]"]
    write(Run("mixed", Identity(""), searches={"mine": search}), tmp_path)
    assert r"| \[1, 2, 3\] | **82.00** |" in (tmp_path / "report.md").read_text(encoding="utf-8")

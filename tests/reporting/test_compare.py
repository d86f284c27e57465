"""Results against the published figures: matched, judged, and refused where there is nothing to compare."""

from __future__ import annotations

import pandas as pd
import pytest
from result_files import IMAGENET, RESNET50, authors, comparison, imagenet_csv, main_csv, seeds_csv

from openood_adascale import published
from openood_adascale.metrics import COLUMNS
from openood_adascale.reporting.compare import compare, render


@pytest.mark.parametrize("network", ["resnet50", "regnet"])
@pytest.mark.parametrize("stem", ["adascale", "adascale_logit", "adascale_a", "adascale_l"])
@pytest.mark.parametrize("scheme", ["ood", "fsood"])
def test_the_authors_figures_pass(tmp_path, network, stem, scheme):
    method = "AdaSCALE-A" if stem in ("adascale", "adascale_a") else "AdaSCALE-L"
    table = authors(network={"regnet": "regnet-y-16gf"}.get(network, network), method=method, scheme=scheme)
    folder = tmp_path / f"imagenet_{network}_tvsv1_base_default" / scheme
    result = compare(imagenet_csv(folder / f"{stem}.csv", table), tolerance=0.01)
    judged = [figure for figure in result.figures if figure.within is not None]
    assert result.status == 0
    assert len(judged) == 14
    noted = any("k2 = 30 %" in note for note in result.notes)
    assert noted == (network == "regnet" and method == "AdaSCALE-A")


@pytest.mark.parametrize(
    ("difference", "status"), [(0.0, 0), (0.5, 0), (-0.5, 0), (0.51, 1), (-0.51, 1), (3.0, 1)]
)
def test_tolerance(tmp_path, difference, status):
    table = authors()
    table.loc["ninco", "AUROC"] += difference
    path = imagenet_csv(tmp_path / RESNET50 / "ood" / "adascale.csv", table)
    assert comparison(path) == status
    assert comparison(path, "--tolerance", "4") == 0


def test_differences_are_measured_minus_published(tmp_path):
    table = authors()
    table["FPR@95"] += 0.3
    result = compare(seeds_csv(tmp_path / RESNET50 / "ood" / "adascale.csv", table))
    for figure in result.figures:
        if figure.source.startswith("the authors'") and figure.metric == "FPR@95":
            assert figure.difference == pytest.approx(0.3)
            assert figure.std == 0.25
    text = render(result)
    assert "58.22 ± 0.25" in text
    assert "all within ± 0.5 points (14 figures compared)" in text


def test_the_papers_averages_get_no_verdict(tmp_path, capsys):
    path = imagenet_csv(tmp_path / RESNET50 / "ood" / "scale.csv", authors())
    assert comparison(path) == 2
    out = capsys.readouterr().out
    assert "nothing comparable" in out
    assert "over imagenet_o, ninco, ssb_hard; this file's nearood over ninco, ssb_hard" in out
    assert "places" in out
    assert "for information only" in out


def test_the_papers_averages_are_judged_over_the_papers_sets(tmp_path):
    paper = published.results()
    paper = paper[(paper["source"].str.startswith("paper Table 2")) & (paper["network"] == "resnet101")]
    paper = paper[paper["method"] == "OptFS"].set_index("ood_set")[["fpr95", "auroc"]]
    names = ("ssb_hard", "ninco", "ImageNet-O", "nearood", "inaturalist", "textures", "openimageo", "places")
    table = pd.DataFrame(50.0, index=[*names, "farood"], columns=list(COLUMNS))
    table.loc["nearood", ["FPR@95", "AUROC"]] = paper.loc["near-average"].to_numpy()
    table.loc["farood", ["FPR@95", "AUROC"]] = paper.loc["far-average"].to_numpy() + 1.0
    path = imagenet_csv(tmp_path / "imagenet_resnet101_base" / "ood" / "optfs.csv", table)
    result = compare(path)
    assert [figure.within for figure in result.figures] == [True, True, False, False]
    assert result.status == 1


def test_authors_average_is_not_judged_over_other_sets(tmp_path):
    table = pd.concat([authors().iloc[:2], pd.DataFrame(50.0, ["imagenet_o"], COLUMNS), authors().iloc[2:]])
    result = compare(imagenet_csv(tmp_path / RESNET50 / "ood" / "adascale.csv", table))
    verdicts = {figure.ood_set: figure.within for figure in result.figures if "authors" in figure.source}
    assert verdicts == {**dict.fromkeys(IMAGENET, True), "nearood": None}


def test_main_py_spellings_and_missing_sets(tmp_path):
    table = authors("cifar10", "resnet18_32x32").rename(index={"places365": "place365"}).drop(index="svhn")
    path = main_csv(tmp_path / "cifar10_resnet18_32x32_test_ood_ood_adascale_0/s0/ood/ood.csv", table)
    result = compare(path)
    judged = {figure.ood_set for figure in result.figures if figure.within}
    assert "place365" in judged
    assert any("published but not in this file: svhn" in note for note in result.notes)
    assert any("how the network was trained" in note for note in result.notes)
    assert not any(figure.within is not None for figure in result.figures if figure.ood_set == "farood")


def test_told_by_options(tmp_path, capsys):
    path = imagenet_csv(tmp_path / "mine.csv", authors(method="AdaSCALE-L"))
    assert comparison(path) == 2
    assert "dataset: not told by the path" in capsys.readouterr().err
    options = ["--dataset", "imagenet", "--network", "ResNet50"]
    assert comparison(path, *options) == 2
    assert "method: not told by the path ('mine')" in capsys.readouterr().err
    assert comparison(path, *options, "--method", "adascale_logit") == 0
    assert "taken as 'ood'" in capsys.readouterr().out
    assert comparison(path, *options, "--method", "AdaSCALE-L", "--scheme", "fsood") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "vgg"], "network: 'vgg'; figures are published for imagenet with network"),
        (["--dataset", "mnist"], "dataset: 'mnist'; figures are published with dataset"),
        (["--method", "knn"], "method: 'knn'"),
        (["--tolerance", "-1"], "tolerance: -1.0; expected"),
        (["--tolerance", "nan"], "tolerance: nan; expected"),
    ],
)
def test_unknown_requests_say_what_is_allowed(tmp_path, capsys, options, message):
    path = imagenet_csv(tmp_path / RESNET50 / "ood" / "adascale.csv", authors())
    assert comparison(path, *options) == 2
    assert message in capsys.readouterr().err

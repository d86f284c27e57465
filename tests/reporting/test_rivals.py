"""Published figures beside measured ones: only where they are of the same, and marked as what they are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_files import CIFAR10, SETS, Page, report, save_table
from result_files import authors

from openood_adascale import published
from openood_adascale.errors import ResultError
from openood_adascale.metrics import COLUMNS
from openood_adascale.reporting.gather import collect
from openood_adascale.reporting.identify import Identity
from openood_adascale.reporting.names import label_of
from openood_adascale.reporting.report import write
from openood_adascale.reporting.rivals import published_name, rivals, whose
from openood_adascale.reporting.runs import Evaluated, unknown
from openood_adascale.reporting.tables import ResultTable

IMAGENET = ("imagenet", "resnet50")
PAPER = {
    "near": ("ssb_hard", "NINCO", "ImageNet-O"),
    "far": ("inaturalist", "OpenImage-O", "textures", "places"),
}


def measured(label="MSP", near=SETS["near"], far=SETS["far"], value=50.0):
    rows = [*near, *(["nearood"] if near else []), *far, *(["farood"] if far else [])]
    table = pd.DataFrame(value, index=rows, columns=list(COLUMNS))
    return Evaluated(label, ResultTable(tuple(near), tuple(far), table, unknown(table)))


def test_on_the_same_sets_it_is_what_was_published():
    found = rivals([measured()], IMAGENET, "ood")
    assert [method.label for method in found.beside] == ["AdaSCALE-A (published)", "AdaSCALE-L (published)"]
    for method, name in zip(found.beside, ("AdaSCALE-A", "AdaSCALE-L"), strict=True):
        want = authors(method=name)
        assert method.published
        for row in want.index:  # nearood and farood among them
            for metric in ("FPR@95", "AUROC"):
                assert method.value(row, metric)[0] == want.loc[row, metric]
        assert np.isnan(method.value("nearood", "ACC")[0])
    assert any(
        "result file imagenet_resnet50_tvsv1_base_default/ood/adascale_a.csv" in note for note in found.notes
    )
    assert not any("Table" in note for note in found.notes)
    full = rivals([measured()], IMAGENET, "fsood")
    assert full.beside[0].value("ninco", "AUROC")[0] == authors(scheme="fsood").loc["ninco", "AUROC"]
    assert full.sheet is None


def test_what_was_run_is_not_among_its_rivals():
    for label in ("AdaSCALE-A", "AdaSCALE-A (OpenOOD)", "AdaSCALE-A (adascale_resnet50)", "AdaSCALE-A [a]"):
        found = rivals([measured(label)], IMAGENET, "ood")
        assert [method.label for method in found.beside] == ["AdaSCALE-L (published)"]
    assert published_name("AdaSCALE-A [AdaSCALE-A]") == "AdaSCALE-A"


def test_averages_of_the_paper_stand_by_themselves():
    """They contain ImageNet-O and Places, which the run's do not."""
    found = rivals([measured("AdaSCALE-A"), measured("MSP")], IMAGENET, "ood")
    assert "not comparable with those above: near imagenet_o, ninco, ssb_hard; far" in found.sheet.title
    rows = {row[0][0]: [float(text) for text, _ in row[1:]] for row in found.sheet.rows}
    assert len(rows) == 11
    assert {name for name in rows if "run here" in name} == {
        "AdaSCALE-A (published; run here, too)",
        "MSP (published; run here, too)",
    }
    assert rows["MSP (published; run here, too)"] == [74.23, 60.21, 53.15, 84.06]
    assert rows["ASH (published)"] == [69.47, 71.33, 24.69, 94.43]
    assert not any("epsilon" in name or "n_val" in name for name in rows)
    aurocs = [row[1] for row in rows.values()]
    assert aurocs == sorted(aurocs, reverse=True)
    assert found.sheet.published == frozenset(range(11))
    assert not any(best for row in found.sheet.rows for _, best in row)


def test_on_the_papers_sets_its_averages_are_the_rivals():
    found = rivals([measured("MSP", **PAPER)], IMAGENET, "ood")
    assert found.sheet is None
    beside = {method.label: method for method in found.beside}
    assert len(beside) == 10
    assert beside["ASH (published)"].value("nearood", "AUROC")[0] == 71.33
    assert beside["ASH (published)"].value("farood", "FPR@95")[0] == 24.69
    assert np.isnan(beside["ASH (published)"].value("NINCO", "AUROC")[0])
    # Of these there are both: each set from the authors' files, the average from the paper.
    assert beside["AdaSCALE-A (published)"].value("NINCO", "AUROC")[0] == authors().loc["ninco", "AUROC"]
    assert beside["AdaSCALE-A (published)"].value("nearood", "AUROC")[0] == 78.98
    assert any(note.startswith("ASH (published): paper Table 2") for note in found.notes)
    one_side = rivals([measured("MSP", PAPER["near"], SETS["far"])], IMAGENET, "ood")
    ash = next(method for method in one_side.beside if method.label == "ASH (published)")
    assert (ash.value("nearood", "AUROC")[0], np.isnan(ash.value("farood", "AUROC")[0])) == (71.33, True)
    assert one_side.sheet is not None


def test_averages_over_other_sets_are_computed_or_left_out():
    of_file = authors()
    found = rivals([measured("MSP", ("ninco",), ("textures", "iNaturalist"))], IMAGENET, "ood")
    ours = found.beside[0]
    assert (
        ours.value("nearood", "AUROC")[0] == of_file.loc["ninco", "AUROC"] != of_file.loc["nearood", "AUROC"]
    )
    assert ours.value("farood", "FPR@95")[0] == pytest.approx(
        of_file.loc[["textures", "inaturalist"], "FPR@95"].mean()
    )
    found = rivals([measured("MSP", ("ninco", "my own"), ("textures",))], IMAGENET, "ood")
    assert np.isnan(found.beside[0].value("nearood", "AUROC")[0])
    assert found.beside[0].value("ninco", "AUROC")[0] == of_file.loc["ninco", "AUROC"]
    assert found.beside[0].value("farood", "AUROC")[0] == of_file.loc["textures", "AUROC"]
    assert rivals([measured("MSP", ("mine",), ("yours",))], IMAGENET, "ood").beside == []
    near_only = rivals([measured("MSP", SETS["near"], ())], IMAGENET, "ood").beside[0]
    assert near_only.value("nearood", "AUROC")[0] == of_file.loc["nearood", "AUROC"]
    assert list(near_only.table.mean.index) == [*SETS["near"], "nearood"]


@pytest.mark.parametrize(
    ("identity", "chosen", "want"),
    [
        (Identity("", dataset="imagenet", network="resnet50"), None, IMAGENET),
        (Identity("", dataset="imagenet", network="resnet50"), "none", None),
        (Identity("", dataset="imagenet", network="resnet50", training="augmix"), None, None),
        (
            Identity("", dataset="imagenet", network="resnet50", training="augmix"),
            "imagenet:resnet50",
            IMAGENET,
        ),
        (Identity(""), None, None),
        (Identity(""), "ImageNet:ViT_B_16", ("imagenet", "vit-b-16")),
        (Identity(""), "cifar10:resnet18_32x32", ("cifar10", "resnet18_32x32")),
    ],
)
def test_whose_figures(identity, chosen, want):
    assert whose(identity, chosen) == want


def test_all_that_is_published_can_be_chosen(tmp_path):
    """By the names that the error tells, in whatever case."""
    rows = published.results()
    pairs = {pair for pair in zip(rows["dataset"], rows["network"], strict=True) if pair[1] != "average"}
    assert ("imagenet", "resnet50-ISH") in pairs
    for pair in pairs:
        for chosen in (":".join(pair), f" {':'.join(pair).upper()} "):
            assert whose(Identity(""), chosen) == pair
    save_table(tmp_path / "ood" / "msp.csv", 70)
    assert report(tmp_path, "--published", "imagenet:resnet50-ISH") == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"*{authors(network='resnet50-ISH').loc['nearood', 'AUROC']:.2f}*" in text


def test_every_published_method_is_known_when_it_was_run():
    """However its postprocessor is called: else a table had it twice, the second as if it was not run."""
    stems = ("ash", "bfact", "ebo", "lts", "mls", "msp", "optfs", "react", "scale")
    names = {name for name in published.results()["method"] if "," not in name}
    for ours in (("adascale", "adascale_logit"), ("adascale_a", "adascale_l")):
        run = [measured(label_of(stem), **PAPER) for stem in (*stems, *ours)]
        assert {published_name(method.label) for method in run} == names
        assert rivals(run, IMAGENET, "ood").beside == []
        for left_out in run:
            others = [method for method in run if method is not left_out]
            (rival,) = rivals(others, IMAGENET, "ood").beside
            assert rival.label == f"{published_name(left_out.label)} (published)"


@pytest.mark.parametrize("chosen", ["imagenet", "imagenet:", "imagenet:average", "cifar10:resnet50", ":", ""])
def test_nothing_is_published_for_it(chosen, tmp_path):
    with pytest.raises(
        ResultError, match=r"published: .*expected none, or DATASET:NETWORK, which can be imagenet:resnet50"
    ):
        whose(Identity(""), chosen)
    save_table(tmp_path / "ood" / "msp.csv", 70)
    assert report(tmp_path, "--published", chosen) == 2
    assert not (tmp_path / "report").exists()


def test_what_must_be_known_of_them_is_told():
    notes = rivals([measured()], ("imagenet", "regnet-y-16gf"), "ood").notes
    assert any("made with k2 = 30 %" in note for note in notes)
    assert rivals([measured()], None, "ood").beside == rivals([], IMAGENET, "ood").beside == []
    for dataset, network in (("imagenet", "vit-b-16"), ("cifar10", "resnet18_32x32")):
        of = published.results().query("dataset == @dataset and network == @network")
        assert len(of)
        assert bool(rivals([measured()], (dataset, network), "ood").sheet) == (dataset == "imagenet")


@pytest.mark.drawn
def test_in_the_report_they_are_marked(tmp_path):
    folder = tmp_path / CIFAR10
    table = authors("cifar10", "resnet18_32x32", "AdaSCALE-A")
    (folder / "ood").mkdir(parents=True)
    (table * 0 + 50.0).to_csv(folder / "ood" / "msp.csv")
    assert report(folder) == 0
    html = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert html.count("<tr class=published>") == 6  # two methods in three tables
    assert "hollow: published, not run here" in html
    lines = (folder / "report" / "report.md").read_text(encoding="utf-8").splitlines()
    value = table.loc["nearood", "AUROC"]
    assert any(
        line.startswith("| *AdaSCALE-A (published)* | *") and f"*{value:.2f}*" in line for line in lines
    )
    # Best is what was measured, however much better the published is; and the leaderboard is no place for it.
    assert not any("**" in line and "published" in line for line in lines)
    board = (folder / "report" / "leaderboard" / "cifar10.csv").read_text()
    assert "MSP" in board
    assert "published" not in board
    with_rivals = (folder / "report" / "methods_ood.png").read_bytes()
    assert report(folder, "--published", "none") == 0
    html = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "(published)" not in Page(folder / "report" / "report.html").text
    assert "class=published" not in html
    assert (folder / "report" / "methods_ood.png").read_bytes() != with_rivals


def test_results_in_memory_can_be_told_whose_they_are(tmp_path):
    save_table(tmp_path / "ood" / "msp.csv", 70)
    run = collect(tmp_path)
    text = (write(run, tmp_path / "a", published="imagenet:resnet50").parent / "report.md").read_text()
    assert "*AdaSCALE-L (published)*" in text
    assert "(published)" not in (write(run, tmp_path / "b").parent / "report.md").read_text()


def test_a_preset_is_the_method_that_it_sets(tmp_path):
    """OpenOOD's name for a run of this package's preset."""
    save_table(tmp_path / "ood" / "adascale_resnet50.csv", 70)
    save_table(tmp_path / "ood" / "msp.csv", 60)
    assert report(tmp_path, "--published", "imagenet:resnet50") == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "*AdaSCALE-L (published)*" in text
    assert "*AdaSCALE-A (published)*" not in text

"""Published results beside a run, and compared with a result CSV."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers import IMAGENET, RESNET50, SETS, authors, command, imagenet_csv, main_csv, seeds_csv

from openood_adascale.errors import ResultError
from openood_adascale.metrics import COLUMNS
from openood_adascale.report.names import label_of
from openood_adascale.report.reference import baselines, compare, comparison_text, parse_reference, references
from openood_adascale.report.run import MethodResult, Run
from openood_adascale.report.tables import table_of

PAIR = ("imagenet", "resnet50")
PAPER = {
    "near": ("ssb_hard", "NINCO", "ImageNet-O"),
    "far": ("inaturalist", "OpenImage-O", "textures", "places"),
}


def measured(*labels, near=SETS["near"], far=SETS["far"], scheme="ood") -> Run:
    table = table_of({}, near, far).fillna(50.0)
    return Run([MethodResult(label, table) for label in labels or ("MSP",)], tuple(near), tuple(far), scheme)


def test_baselines_on_the_same_sets_are_the_published_ones():
    methods, notes = baselines(measured(), PAIR)
    assert [one.label for one in methods] == ["AdaSCALE-A (published)", "AdaSCALE-L (published)"]
    for method, name in zip(methods, ("AdaSCALE-A", "AdaSCALE-L"), strict=True):
        want = authors(method=name)
        assert method.published
        for row in want.index:  # nearood and farood among them
            for metric in ("FPR@95", "AUROC"):
                assert method.value(row, metric)[0] == want.loc[row, metric]
        assert np.isnan(method.value("nearood", "ACC")[0])
    assert any("imagenet_resnet50_tvsv1_base_default/ood/adascale_a.csv" in note for note in notes)
    full, _ = baselines(measured(scheme="fsood"), PAIR)
    assert full[0].value("ninco", "AUROC")[0] == authors(scheme="fsood").loc["ninco", "AUROC"]
    assert baselines(measured(), None) == ([], [])


def test_every_published_method_that_was_run_is_no_baseline():
    stems = ("ash", "bfact", "ebo", "lts", "mls", "msp", "optfs", "react", "scale")
    for ours in (("adascale", "adascale_logit"), ("adascale_a", "adascale_l")):
        run = measured(*stems, *ours, **PAPER)
        assert baselines(run, PAIR) == ([], [])
        for place, left_out in enumerate(run.methods):
            others = Run(run.methods[:place] + run.methods[place + 1 :], run.near, run.far)
            ((found,), _) = baselines(others, PAIR)
            assert found.label == f"{label_of(left_out.name).removesuffix(' (OpenOOD)')} (published)"


def test_baselines_on_the_papers_sets_have_the_papers_averages():
    methods = {one.label: one for one in baselines(measured("MSP", **PAPER), PAIR)[0]}
    assert len(methods) == 10
    assert methods["ASH (published)"].value("nearood", "AUROC")[0] == 71.33
    assert np.isnan(methods["ASH (published)"].value("NINCO", "AUROC")[0])
    # Of AdaSCALE there are both: each set from the authors' files, the average from the paper.
    assert methods["AdaSCALE-A (published)"].value("NINCO", "AUROC")[0] == authors().loc["ninco", "AUROC"]
    assert methods["AdaSCALE-A (published)"].value("nearood", "AUROC")[0] == 78.98


def test_averages_over_fewer_sets_are_computed_or_left_out():
    want = authors()
    found = baselines(measured(near=("ninco",), far=("textures", "iNaturalist")), PAIR)[0][0]
    assert found.value("nearood", "AUROC")[0] == want.loc["ninco", "AUROC"]
    mean = want.loc[["textures", "inaturalist"], "FPR@95"].mean()
    assert found.value("farood", "FPR@95")[0] == pytest.approx(mean)
    found = baselines(measured(near=("ninco", "mine"), far=("textures",)), PAIR)[0][0]
    assert np.isnan(found.value("nearood", "AUROC")[0])
    assert baselines(measured(near=("mine",), far=("yours",)), PAIR) == ([], [])


@pytest.mark.parametrize(
    ("chosen", "settings", "want"),
    [
        (None, {}, PAIR),
        ("none", {}, None),
        (None, {"training": "augmix"}, None),
        ("imagenet:resnet50", {"training": "augmix"}, PAIR),
        ("ImageNet:ViT_B_16", {}, ("imagenet", "vit-b-16")),
    ],
)
def test_reference_is_the_chosen_one_or_the_runs_own(chosen, settings, want):
    run = measured()
    run.id, run.network, run.settings = "imagenet", "resnet50", settings
    assert parse_reference(chosen, run) == want
    assert parse_reference(None, measured()) is None


def test_every_published_pair_can_be_the_reference():
    assert ("imagenet", "resnet50-ISH") in references()
    for pair in references():
        assert parse_reference(f" {':'.join(pair).upper()} ") == pair
    for wrong in ("imagenet", "imagenet:", "imagenet:average", "cifar10:resnet50", ":", ""):
        with pytest.raises(
            ResultError, match=r"reference: .*expected none, or DATASET:NETWORK, one of imagenet:"
        ):
            parse_reference(wrong)


# The command compare.


@pytest.mark.parametrize("network", ["resnet50", "regnet"])
@pytest.mark.parametrize("stem", ["adascale", "adascale_l"])
@pytest.mark.parametrize("scheme", ["ood", "fsood"])
def test_compare_passes_the_authors_results(tmp_path, network, stem, scheme):
    method = "AdaSCALE-A" if stem == "adascale" else "AdaSCALE-L"
    table = authors(network={"regnet": "regnet-y-16gf"}.get(network, network), method=method, scheme=scheme)
    folder = tmp_path / f"imagenet_{network}_tvsv1_base_default" / scheme
    result = compare(imagenet_csv(folder / f"{stem}.csv", table), tolerance=0.01)
    assert result.status == 0
    assert (result.values["verdict"] == "ok").sum() == 14
    noted = any("k2 = 30 %" in note for note in result.notes)
    assert noted == (network == "regnet" and method == "AdaSCALE-A")


@pytest.mark.parametrize(("difference", "status"), [(0.0, 0), (0.5, 0), (-0.5, 0), (0.51, 1), (-0.51, 1)])
def test_compare_has_a_tolerance(tmp_path, difference, status):
    table = authors()
    table.loc["ninco", "AUROC"] += difference
    path = imagenet_csv(tmp_path / RESNET50 / "ood" / "adascale.csv", table)
    assert command("compare", path) == status
    assert command("compare", path, "--tolerance", "4") == 0


def test_compare_prints_measured_minus_published(tmp_path):
    table = authors()
    table["FPR@95"] += 0.3
    result = compare(seeds_csv(tmp_path / RESNET50 / "ood" / "adascale.csv", table))
    theirs = result.values[result.values["source"].str.startswith("the authors'")]
    theirs = theirs[theirs["metric"] == "FPR@95"]
    assert theirs["difference"].to_numpy() == pytest.approx(0.3)
    assert (theirs["std"] == 0.25).all()
    text = comparison_text(result)
    assert "58.22 ± 0.25" in text
    assert "all within ± 0.5 points (14 values compared)" in text


def test_compare_gives_no_verdict_over_other_sets(tmp_path, capsys):
    path = imagenet_csv(tmp_path / RESNET50 / "ood" / "scale.csv", authors())
    assert command("compare", path) == 2
    out = capsys.readouterr().out
    assert "nothing comparable" in out
    assert "over imagenet_o, ninco, ssb_hard; this file's nearood over ninco, ssb_hard" in out
    assert "for information only" in out
    more = pd.concat([authors().iloc[:2], pd.DataFrame(50.0, ["imagenet_o"], COLUMNS), authors().iloc[2:]])
    result = compare(imagenet_csv(tmp_path / RESNET50 / "ood" / "adascale.csv", more))
    theirs = result.values[result.values["source"].str.contains("authors")]
    verdicts = dict(zip(theirs["ood_set"], theirs["verdict"], strict=True))
    assert verdicts == {**dict.fromkeys(IMAGENET, "ok"), "nearood": "n/a"}


def test_compare_knows_main_pys_spellings(tmp_path):
    table = authors("cifar10", "resnet18_32x32").rename(index={"places365": "place365"}).drop(index="svhn")
    result = compare(
        main_csv(tmp_path / "cifar10_resnet18_32x32_test_ood_ood_adascale_0/s0/ood/ood.csv", table)
    )
    assert "place365" in set(result.values.loc[result.values["verdict"] == "ok", "ood_set"])
    assert any("published but not in this file: svhn" in note for note in result.notes)


def test_compare_takes_options_for_what_the_path_does_not_say(tmp_path, capsys):
    path, options = imagenet_csv(tmp_path / "mine.csv", authors(method="AdaSCALE-L")), []
    for key, value in (("dataset", "imagenet"), ("network", "ResNet50"), ("method", "adascale_logit")):
        assert command("compare", path, *options) == 2
        assert f"{key}: not in the path ('mine')" in capsys.readouterr().err
        options += [f"--{key}", value]
    assert command("compare", path, *options) == 0
    assert "ood is assumed" in capsys.readouterr().out
    assert command("compare", path, *options, "--scheme", "fsood") == 1


def test_compare_refuses_another_training_unless_told(tmp_path, capsys):
    path = imagenet_csv(tmp_path / "imagenet_resnet50_tvsv2_base_default" / "ood" / "adascale.csv", authors())
    assert command("compare", path) == 2
    assert "torchvision weights V2" in capsys.readouterr().err
    assert command("compare", path, "--network", "resnet50") == 0
    assert "torchvision weights V2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "vgg"], "network: 'vgg'; expected, as published for imagenet (--network): "),
        (["--method", "knn"], "method: 'knn'"),
        (["--tolerance", "nan"], "tolerance: nan; expected"),
    ],
)
def test_compare_says_what_is_allowed(tmp_path, capsys, options, message):
    path = imagenet_csv(tmp_path / RESNET50 / "ood" / "adascale.csv", authors())
    assert command("compare", path, *options) == 2
    assert message in capsys.readouterr().err


def test_compare_takes_a_folder(tmp_path, capsys):
    folder = tmp_path / RESNET50
    assert command("compare", folder) == 2
    imagenet_csv(folder / "ood" / "adascale.csv", authors())
    imagenet_csv(folder / "ood" / "knn.csv", authors())
    assert command("compare", folder) == 0
    assert "not compared: " in capsys.readouterr().err
    assert command("compare", folder, "--method", "AdaSCALE-A") == 2
    (folder / "ood" / "bad.csv").write_text(",FPR@95,AUROC\n")
    assert command("compare", folder) == 2
    assert "bad.csv, line 1" in capsys.readouterr().err

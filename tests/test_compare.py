"""compare: OpenOOD's formats read as OpenOOD writes them, matched, judged, and refused where broken."""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from openood_adascale import compare as compare_module
from openood_adascale import published
from openood_adascale.compare import compare, render
from openood_adascale.results import METRICS, ResultError, canonical_set, identify, read_table

IMAGENET = ("ssb_hard", "ninco", "nearood", "inaturalist", "textures", "openimage_o", "farood")
RESNET50 = "imagenet_resnet50_tvsv1_base_default"


def authors(dataset="imagenet", network="resnet50", method="AdaSCALE-A", scheme="ood") -> pd.DataFrame:
    """The authors' figures as an evaluation's table: rows OOD sets, OpenOOD's columns."""
    table = published.results()
    table = table[table["source"].str.startswith("the authors'")].set_index(
        ["dataset", "network", "method", "scheme"]
    )
    table = table.sort_index(kind="stable").loc[(dataset, network, method, scheme)].set_index("ood_set")
    return pd.DataFrame(
        {"FPR@95": table["fpr95"], "AUROC": table["auroc"], "AUPR_IN": 90.0, "AUPR_OUT": 60.0, "ACC": 76.19}
    ).rename_axis(None)


def imagenet_csv(path: Path, table: pd.DataFrame) -> Path:
    """As eval_ood_imagenet.py writes: two decimals, one run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, float_format="{:.2f}".format)
    return path


def seeds_csv(path: Path, table: pd.DataFrame, std: float = 0.25) -> Path:
    """As eval_ood.py writes: 'mean ± std' strings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [["{:.2f} \u00b1 {:.2f}".format(mean, std) for mean in row] for row in table.to_numpy()]  # noqa: UP032
    pd.DataFrame(cells, index=table.index, columns=table.columns).to_csv(path)
    return path


def main_csv(path: Path, table: pd.DataFrame) -> Path:
    """As main.py appends to ood.csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["dataset", *METRICS])
        if new:
            writer.writeheader()
        for name, row in table.iterrows():
            writer.writerow({"dataset": name, **{metric: f"{row[metric]:.2f}" for metric in METRICS}})
    return path


def run(*words) -> int:
    parser = argparse.ArgumentParser()
    compare_module.add_arguments(parser)
    return compare_module.run(parser.parse_args([str(word) for word in words]))


# Reading


def test_reads_all_three_formats(tmp_path):
    table = authors()
    plain = read_table(imagenet_csv(tmp_path / "a.csv", table))
    seeds = read_table(seeds_csv(tmp_path / "b.csv", table))
    main = read_table(main_csv(tmp_path / "ood.csv", table))
    for read in (plain, seeds, main):
        pd.testing.assert_frame_equal(read.mean, table.round(2), check_names=False)
        assert (read.near, read.far) == (IMAGENET[:2], IMAGENET[3:6])
    assert (seeds.std == 0.25).all(axis=None)
    assert plain.std.isna().all(axis=None)
    assert main.kind == "main.py"
    assert "mean ± std" in seeds.kind


def test_main_py_takes_the_last_complete_run(tmp_path):
    path = tmp_path / "ood.csv"
    table = authors()
    main_csv(path, table / 2)
    main_csv(path, (table / 3).iloc[:5])  # broken off among the far sets
    main_csv(path, table)
    main_csv(path, (table / 3).iloc[:1])
    read = read_table(path)
    pd.testing.assert_frame_equal(read.mean, table.round(2), check_names=False)
    assert read.notes == (
        "2 complete run(s) in this file: the last one (lines 14–20) is used; "
        "an unfinished run from line 21 on is ignored",
    )


def test_only_near_or_only_far(tmp_path):
    table = authors()
    near = read_table(imagenet_csv(tmp_path / "near.csv", table.iloc[:3]))
    far = read_table(imagenet_csv(tmp_path / "far.csv", table.iloc[3:]))
    assert (near.near, near.far, far.near, far.far) == (IMAGENET[:2], (), (), IMAGENET[3:6])


HEADER = ",FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: the header is ''; expected ',FPR@95"),
        ("a,b\n1,2\n", "line 1: the header is 'a,b'"),
        (HEADER, "the rows are .*; expected near OOD sets"),
        (HEADER + "ssb,1,2,3,4\n", "line 2: 5 columns; expected 6"),
        (HEADER + "ssb,1,x,3,4,5\nnearood,1,1,1,1,1\n", "line 2, column AUROC: 'x'; expected a percentage"),
        (HEADER + "ssb,1,2,3,4,5\nnearood,nan,1,1,1,1\n", "line 3, column FPR@95: 'nan'"),
        (HEADER + "ssb,1,101,3,4,5\nnearood,1,1,1,1,1\n", "line 2, column AUROC: '101'"),
        (HEADER + "ssb,1,2,3,4,5\nssb,1,2,3,4,5\nnearood,1,1,1,1,1\n", "the row 'ssb' is there 2 times"),
        (HEADER + "ssb,1,2,3,4,5\nnearood,1,2,3,4,5\nfar,1,1,1,1,1\n", "the last row is 'far'; expected"),
        ("dataset" + HEADER + "ssb,1,2,3,4,5\nnearood,1,1,1,1,1\n", "no complete run"),
    ],
)
def test_malformed_files_say_where(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ResultError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value)


def test_not_utf8(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(HEADER.encode() + "ssb,1 ± 2,2,3,4,5".encode("latin1"))
    with pytest.raises(ResultError, match="UTF-8"):
        read_table(path)


# Telling what was evaluated


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{RESNET50}/ood/adascale.csv", ("imagenet", "resnet50", "AdaSCALE-A", "ood")),
        (f"{RESNET50}/fsood/adascale_l.csv", ("imagenet", "resnet50", "AdaSCALE-L", "fsood")),
        ("imagenet_regnet_tvsv1_base_default/ood/scale.csv", ("imagenet", "regnet-y-16gf", "SCALE", "ood")),
        ("imagenet_vit-b-16_tvsv1_base_default/ood/msp.csv", ("imagenet", "vit-b-16", "MSP", "ood")),
        (
            "cifar10_resnet18_32x32_base_e100_lr0.1_default/ood/adascale_logit.csv",
            ("cifar10", "resnet18_32x32", "AdaSCALE-L", "ood"),
        ),
        (
            "imagenet200_resnet18_224x224_base_e90_lr0.1_default/ood/ash.csv",
            ("imagenet200", "resnet18_224x224", "ASH", "ood"),
        ),
        (
            "cifar10_resnet18_32x32_test_ood_ood_adascale_logit_my_mark/s0/ood/ood.csv",
            ("cifar10", "resnet18_32x32", "AdaSCALE-L", "ood"),
        ),
        (
            "cifar100_resnet18_32x32_test_ood_fsood_mls_0/ood.csv",
            ("cifar100", "resnet18_32x32", "MLS", "fsood"),
        ),
        ("ish/ood/adascale_a.csv", ("imagenet", "resnet50-ISH", "AdaSCALE-A", "ood")),
        ("imagenet_resnet50_ish_default/ood/react.csv", ("imagenet", "resnet50-ISH", "ReAct", "ood")),
        ("here/adascale_resnet50.csv", (None, "resnet50", "AdaSCALE-A", None)),
        ("here/adascale_logit_imagenet_vit_b_16.csv", ("imagenet", "vit-b-16", "AdaSCALE-L", None)),
        ("here/adascale_wrn_28_10_cifar100.csv", ("cifar100", "wrn-28-10", "AdaSCALE-A", None)),
        ("here/adascale_random.csv", (None, None, None, None)),
        ("here/knn.csv", (None, None, None, None)),
    ],
)
def test_identify(tmp_path, path, expected):
    found = identify(tmp_path / path)
    assert (found.dataset, found.network, found.method, found.scheme) == expected
    assert found.training is None


@pytest.mark.parametrize(
    ("folder", "training"),
    [
        ("imagenet_resnet50_tvsv2_base_default", "torchvision weights V2"),
        ("cifar10_resnet18_32x32_augmix_e100_lr0.1_default", "augmix"),
    ],
)
def test_other_training_is_not_compared_silently(tmp_path, capsys, folder, training):
    path = imagenet_csv(tmp_path / folder / "ood" / "adascale.csv", authors())
    assert identify(path).training == training
    assert run(path) == 2
    assert training in capsys.readouterr().err
    assert run(path, "--dataset", "imagenet", "--network", "resnet50") == 0
    assert training in capsys.readouterr().out


def test_set_names():
    assert {canonical_set(name) for name in ("openimageo", "OpenImage-O", "openimage_o")} == {"openimage_o"}
    assert {canonical_set(name) for name in ("ImageNet-O", "imagenet_o")} == {"imagenet_o"}


# Comparing


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
    assert run(path) == status
    assert run(path, "--tolerance", "4") == 0


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
    assert run(path) == 2
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
    table = pd.DataFrame(50.0, index=[*names, "farood"], columns=list(METRICS))
    table.loc["nearood", ["FPR@95", "AUROC"]] = paper.loc["near-average"].to_numpy()
    table.loc["farood", ["FPR@95", "AUROC"]] = paper.loc["far-average"].to_numpy() + 1.0
    path = imagenet_csv(tmp_path / "imagenet_resnet101_base" / "ood" / "optfs.csv", table)
    result = compare(path)
    assert [figure.within for figure in result.figures] == [True, True, False, False]
    assert result.status == 1


def test_authors_average_is_not_judged_over_other_sets(tmp_path):
    table = pd.concat([authors().iloc[:2], pd.DataFrame(50.0, ["imagenet_o"], METRICS), authors().iloc[2:]])
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
    assert run(path) == 2
    assert "dataset: not told by the path" in capsys.readouterr().err
    options = ["--dataset", "imagenet", "--network", "ResNet50"]
    assert run(path, *options) == 2
    assert "method: not told by the path ('mine')" in capsys.readouterr().err
    assert run(path, *options, "--method", "adascale_logit") == 0
    assert "taken as 'ood'" in capsys.readouterr().out
    assert run(path, *options, "--method", "AdaSCALE-L", "--scheme", "fsood") == 1


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
    assert run(path, *options) == 2
    assert message in capsys.readouterr().err


def test_folder(tmp_path, capsys):
    folder = tmp_path / RESNET50
    imagenet_csv(folder / "ood" / "adascale.csv", authors())
    imagenet_csv(folder / "fsood" / "adascale.csv", authors(scheme="fsood"))
    imagenet_csv(folder / "ood" / "knn.csv", authors())
    imagenet_csv(folder / "ood" / "msp.csv", authors())
    (folder / "search_adascale.csv").write_text("p_min,p_max,auroc\n60,80,90\n")
    imagenet_csv(folder / "report" / "leaderboard" / "ood" / "AdaSCALE-A.csv", authors() + 1)
    assert run(folder) == 0
    said = capsys.readouterr()
    assert said.out.count("all within") == 2
    assert "not compared" in said.err
    assert "knn" in said.err
    assert run(folder, "--method", "adascale") == 2
    imagenet_csv(folder / "ood" / "adascale_logit.csv", authors(method="AdaSCALE-L") - 2)
    assert run(folder) == 1
    (folder / "ood" / "gen.csv").write_text(HEADER + "ssb_hard,1,2\n")
    assert run(folder) == 2
    assert "gen.csv, line 2" in capsys.readouterr().err


def test_nothing_there(tmp_path, capsys):
    assert run(tmp_path) == 2
    assert run(tmp_path / "absent") == 2
    (tmp_path / "other.csv").write_text("a,b\n")
    assert run(tmp_path) == 2
    assert "1 other CSV files, e.g. other.csv" in capsys.readouterr().err


# OpenOOD's own writers


@pytest.fixture
def ood_evaluator(monkeypatch):
    """OpenOOD's OODEvaluator, with stand-ins for what its module imports beside the metrics."""
    root = os.environ.get("OPENOOD_ROOT")
    if not root:
        pytest.skip("OpenOOD is not there: set OPENOOD_ROOT to a checkout of it")
    names = {
        "openood": {},
        "openood.utils": {"Config": object},
        "openood.utils.comm": {},
        "openood.postprocessors": {"BasePostprocessor": object},
        "openood.evaluators": {"__path__": [str(Path(root) / "openood" / "evaluators")]},
    }
    for name, content in names.items():
        module = types.ModuleType(name)
        module.__dict__.update({"__path__": [], **content})
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["openood.utils"].comm = sys.modules["openood.utils.comm"]
    importlib.invalidate_caches()
    yield importlib.import_module("openood.evaluators.ood_evaluator").OODEvaluator
    for name in [name for name in sys.modules if name.startswith("openood.evaluators.")]:
        del sys.modules[name]


def test_openoods_own_writer_and_metrics(tmp_path, ood_evaluator):
    folder = tmp_path / "imagenet_resnet50_test_ood_ood_adascale_default" / "s0" / "ood"
    (folder / "scores").mkdir(parents=True)
    config = types.SimpleNamespace(
        output_dir=str(folder),
        recorder=types.SimpleNamespace(save_csv=True, save_scores=True),
        postprocessor=types.SimpleNamespace(APS_mode=False),
        dataset=types.SimpleNamespace(name="imagenet"),
    )
    rng = np.random.default_rng(0)
    sets = {"nearood": ("ssb_hard", "ninco"), "farood": ("inaturalist", "textures", "openimageo")}
    shift = {
        "imagenet": 2.0,
        "ssb_hard": 1.0,
        "ninco": 0.5,
        "inaturalist": -1,
        "textures": -1,
        "openimageo": 0,
    }

    class Postprocessor:
        def inference(self, net, name):
            conf = rng.normal(shift[name], 1, 400).astype(np.float32)
            label = np.full(400, 3 if name == "imagenet" else -1)
            return np.full(400, 3), conf, label

    evaluator = ood_evaluator(config)
    network = types.SimpleNamespace(eval=lambda: None)
    loaders = {split: {name: name for name in names} for split, names in sets.items()}
    for _ in range(2):
        evaluator.eval_ood(network, {"test": "imagenet"}, loaders, Postprocessor())
    result = compare(folder / "ood.csv")
    assert result.what == {
        "dataset": "imagenet", "network": "resnet50", "method": "AdaSCALE-A", "scheme": "ood",
    }  # fmt: skip
    assert any("2 complete run(s)" in note for note in result.notes)
    assert {figure.ood_set for figure in result.figures} >= {"openimageo", "nearood", "farood"}

    from openood_adascale.runs import collect

    collected = collect(folder.parents[1])
    (method,) = collected.methods["ood"]
    assert method.label == "AdaSCALE-A"
    # The page's numbers from main.py's npz files are those of its CSV (else a note would say so).
    assert not any("older" in note for note in collected.notes)
    assert collected.scores["ood"]["AdaSCALE-A"][0].accuracy == 100

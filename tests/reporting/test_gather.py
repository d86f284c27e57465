"""A run's folder, or results in memory, gathered."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_files import (
    CIFAR10,
    HEADER,
    RESNET50,
    SETS,
    Page,
    evaluator_scores,
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
from openood_adascale.evaluation.result import Result
from openood_adascale.metrics import COLUMNS, auroc, ood_metrics
from openood_adascale.reporting.gather import collect, from_results
from openood_adascale.reporting.report import write
from openood_adascale.reporting.runs import Evaluated


def test_scores_without_a_table_give_the_figures(tmp_path):
    """Three runs s0, s1, s2 with --save-score only: mean and standard deviation as eval_ood.py has them."""
    folder = tmp_path / CIFAR10
    expected = []
    for seed in range(3):
        scores = evaluator_scores(seed=seed)
        save_scores(folder / f"s{seed}" / "scores" / "ebo.pkl", scores)
        inside = scores["id"]["test"][1]
        values = [auroc(inside, scores["ood"]["near"][name][1]) for name in SETS["near"]]
        expected.append(np.mean(values))
    (method,) = collect(folder).methods["ood"]
    assert method.value("nearood", "AUROC") == (
        pytest.approx(np.mean(expected)),
        pytest.approx(np.std(expected)),
    )
    assert method.value("nearood", "ACC") == (75, 0)
    assert report(folder) == 0
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
    assert report(tmp_path) == 2
    assert "holds several runs (imagenet regnet-y-16gf; imagenet resnet50)" in capsys.readouterr().err


def test_nothing_to_report(tmp_path, capsys):
    assert report(tmp_path) == 2
    assert "nothing to report; expected" in capsys.readouterr().err
    assert report(tmp_path / "absent") == 2


def test_bad_files_are_left_out_and_the_rest_is_shown(tmp_path, capsys):
    folder = tmp_path / RESNET50
    bad = {
        "ood/short.csv": (HEADER + "ssb,1,2\n").encode(),
        "ood/latin.csv": HEADER.encode() + "ssb,1 ± 2,2,3,4,5\n".encode("latin1"),
        "search_words.csv": b"p_min,p_max,auroc\na,b,80\n",
        "search_nothing.csv": b"",
        "search_range.csv": b"p_min,p_max,auroc\n60,80,200\n",
        "search_half.csv": b"p_min,auroc\n60,80\n",
        "search_bytes.csv": b"p_min,p_max,auroc\n\xff,\x00,80\n",
        "scores/damaged.pkl": pickle.dumps(evaluator_scores())[:-50],
        "scores/empty.pkl": b"",
        "s0/ood/scores/cifar10.npz": b"PK damaged",
    }
    for name, content in bad.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for name in ("ood/folder.csv", "scores/folder.pkl", "search_folder.csv", "postprocessors/folder.pkl"):
        (folder / name).mkdir(parents=True)
    for name in ("ood/link.csv", "scores/link.pkl", "search_link.csv", "s1/scores/link.npz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to("absent")
    (folder / "s2").mkdir()
    (folder / "s2" / "scores").write_text("a file")
    assert report(folder) == 2
    said = capsys.readouterr().err
    assert "nothing to report" in said
    assert "short.csv" in said
    assert not (folder / "report").exists()

    save_table(folder / "ood" / "msp.csv", 70)
    save_scores(folder / "scores" / "msp.pkl", evaluator_scores())
    save_search(folder / "search_adascale.csv")
    assert report(folder) == 0
    notes = Page(folder / "report" / "report.html").text.partition("Notes")[2]
    for name in (*bad, "ood/folder.csv", "scores/link.pkl", "search_link.csv", "link.npz", "folder.pkl"):
        assert Path(name).name in notes
    assert notes.count("left out: ") == notes.count(str(folder))
    assert (folder / "report" / "search_adascale.png").is_file()


def result(quality: float, search: pd.DataFrame | None = None) -> Result:
    rng = np.random.default_rng(0)
    scores = {"id": rng.normal(quality, 1, 200)}
    scores |= {name: rng.normal(0, 1, 150) for names in SETS.values() for name in names}
    rows = {}
    for side, names in SETS.items():
        rows |= {name: ood_metrics(scores["id"], scores[name]) for name in names}
        rows[f"{side}ood"] = dict(pd.DataFrame([rows[name] for name in names]).mean())
    table = pd.DataFrame.from_dict(rows, orient="index").assign(ACC=76.5)[list(COLUMNS)]
    return Result(table, scores, search, SETS["near"], SETS["far"])


@pytest.mark.drawn
def test_results_in_memory_are_reported_with_scores_and_searches(tmp_path):
    search = pd.DataFrame({"percentile": [(60.0, 80.0), (70.0, 80.0)], "k2": [5, 5], "auroc": [80.0, 81.0]})
    results = {"msp": result(1), "adascale": result(3, search), "mine": result(2)}
    run = from_results(results, "my images")
    assert [method.label for method in run.methods["ood"]] == ["AdaSCALE-A", "mine", "MSP"]
    best = run.methods["ood"][0]
    assert best.value("nearood", "AUROC")[0] == results["adascale"].table.loc["nearood", "AUROC"]
    assert np.isnan(best.value("nearood", "AUROC")[1])
    np.testing.assert_array_equal(best.scores[0].far["textures"], results["adascale"].scores["textures"])
    assert best.scores[0].accuracy == 76.5
    write(run, tmp_path)
    assert "my images" in Page(tmp_path / "report.html").text
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert {"methods_ood", "roc_ood", "scores_ood_MSP", "scores_ood_mine", "search_adascale"} <= pictures
    assert (tmp_path / "leaderboard" / "results_ood.csv").is_file()


def test_results_in_memory_look_as_from_files(tmp_path):
    found = result(1)
    path = tmp_path / "ood" / "msp.csv"
    path.parent.mkdir()
    found.table.to_csv(path)
    (from_file,) = collect(tmp_path).methods["ood"]
    (in_memory,) = from_results({"msp": found}).methods["ood"]
    pd.testing.assert_frame_equal(from_file.table.mean, in_memory.table.mean)
    pd.testing.assert_frame_equal(from_file.table.std, in_memory.table.std)
    # Computed from the scores alone: the same figures.
    computed = Evaluated.from_scores("MSP", in_memory.scores)
    pd.testing.assert_frame_equal(computed.table.mean, in_memory.table.mean[["FPR@95", "AUROC", "ACC"]])


def test_results_in_memory_of_an_unknown_scheme():
    with pytest.raises(ResultError, match="msp: scheme 'near'; expected ood or fsood"):
        from_results({"msp": replace(result(1), scheme="near")})


def test_results_in_memory_go_under_their_own_schemes(tmp_path):
    full = [replace(result(quality), scheme="fsood") for quality in (2, 3)]
    run = from_results({"msp": result(1), "MSP": full[0], "ebo": full[1]})
    assert {scheme: [method.label for method in methods] for scheme, methods in run.methods.items()} == {
        "ood": ["MSP"],
        "fsood": ["EBO", "MSP"],
    }
    write(run, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.index("## OOD detection") < text.index("## Full-spectrum OOD detection")
    assert {"scores_ood_MSP", "scores_fsood_MSP"} <= {path.stem for path in tmp_path.glob("*.png")}
    assert list(from_results({"msp": full[0]}).methods) == ["fsood"]


def test_results_in_memory_of_one_label_are_all_there(tmp_path):
    search = pd.DataFrame({"percentile": [[60.0, 80.0], [70.0, 80.0]], "auroc": [80.0, 81.0]})
    names = ("adascale", "AdaSCALE-A", "msp", "MSP", "MSP [msp]", "ebo")
    results = {name: result(place, search) for place, name in enumerate(reversed(names))}
    run = from_results(results)
    labels = [method.label for method in run.methods["ood"]]
    assert len({*labels}) == len(labels) == 6
    assert labels[:2] == ["AdaSCALE-A [adascale]", "AdaSCALE-A [AdaSCALE-A]"]
    assert labels[3] == "MSP [MSP]"
    assert labels[5] == "EBO"
    assert {*labels[:2], "ebo"} <= {*run.searches}
    write(run, tmp_path)
    assert len(list(tmp_path.glob("scores_ood_*.png"))) == len(list(tmp_path.glob("search_*.png"))) == 6
    text = Page(tmp_path / "report.html").text
    for label in labels:
        assert f"{label}: AUROC on validation images, best 81.00" in text


def test_what_evaluate_finds_is_reported(network, id_images, ood_images, tmp_path):
    benchmark = Benchmark(
        make_loader(id_images),
        near={"near": make_loader(ood_images)},
        far={"far": make_loader(ood_images + 2)},
        val=make_loader(id_images),
        ood_val=make_loader(ood_images),
    )
    detectors = {name: METHODS[name].detector(network) for name in ("msp", "scale", "adascale")}
    results = evaluate(detectors, benchmark, progress=False)
    run = from_results(results)
    assert {method.label for method in run.methods["ood"]} == {"MSP", "SCALE", "AdaSCALE-A"}
    assert set(run.searches) == {name for name, found in results.items() if found.search is not None}
    assert "adascale" in run.searches
    write(run, tmp_path)
    assert {"search_adascale", "scores_ood_MSP"} <= {path.stem for path in tmp_path.glob("*.png")}

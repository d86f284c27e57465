"""The result format: what is written is read, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from report_files import command, sample_run

from openood_adascale.errors import ResultError
from openood_adascale.report import run as run_module
from openood_adascale.report.importers import load
from openood_adascale.report.run import Images, MethodResult, Run, read_run, write_run


@pytest.fixture(params=["csv", "parquet"])
def table_format(request, monkeypatch):
    if request.param == "csv":
        monkeypatch.setattr(run_module, "_can_be_parquet", lambda paths: False)
    else:
        pytest.importorskip("pyarrow")
    return request.param


def assert_same(read: Run, run: Run) -> None:
    for name in ("near", "far", "scheme", "id", "network", "classes", "settings", "title", "notes"):
        assert getattr(read, name) == getattr(run, name), name
    assert [one.name for one in read.methods] == [one.name for one in run.methods]
    for one, other in zip(read.methods, run.methods, strict=True):
        assert one.label == other.label
        pd.testing.assert_frame_equal(one.table, other.table.round(2))
        for kind in ("scores", "percentiles", "oodness"):
            found, wanted = getattr(one, kind), getattr(other, kind)
            assert list(found) == list(wanted)
            for key, values in wanted.items():
                np.testing.assert_array_equal(found[key], values)
        assert (one.search is None) == (other.search is None)
    for key, images in run.images.items():
        np.testing.assert_array_equal(read.images[key].labels, images.labels)
        np.testing.assert_array_equal(read.images[key].predictions, images.predictions)
        assert read.images[key].paths == images.paths


def test_run_written_and_read_is_the_same(tmp_path, table_format):
    run = sample_run(tmp_path / "pictures")
    run.methods[1].settings = {"percentile": [80, 85], "k1": 1.5}
    path = write_run(run, tmp_path / "run")
    assert path == tmp_path / "run" / "run.json"
    read = read_run(tmp_path / "run")
    assert_same(read, run)
    assert read.methods[1].settings == {"percentile": [80, 85], "k1": 1.5}
    pd.testing.assert_frame_equal(read.methods[1].search, run.methods[1].search)
    assert read.version
    assert read.date
    files = {str(file.relative_to(tmp_path / "run")) for file in (tmp_path / "run").rglob("*.*")}
    expected = {
        "run.json",
        f"images.{table_format}",
        "ood/msp.csv",
        "ood/adascale.csv",
        "search/adascale.csv",
    }
    assert {file.replace(os.sep, "/") for file in files} == expected


@pytest.mark.parametrize("path", ["a,b\n\"c'.png", "NA", "nan", "名.png", " x ", "a\rb"])
def test_run_with_odd_names_is_read_as_it_was(tmp_path, table_format, path):
    run = sample_run(count=2)
    run.near, run.methods = ("NA", 'a,"b'), [MethodResult("nan", run.methods[0].table, label="x|y")]
    run.methods[0].scores = {key: np.array([0.1, 1 / 3]) for key in ("id", "NA", 'a,"b', "exotic")}
    paths = (str(tmp_path / path), str(tmp_path / "b"))
    run.images = {key: Images([1, -1], [0, 2], paths) for key in run.methods[0].scores}
    run.methods[0].table.index = ["NA", 'a,"b', "nearood", "exotic", "farood"]
    write_run(run, tmp_path / "run")
    assert_same(read_run(tmp_path / "run"), run)


@pytest.mark.skipif(os.name == "nt", reason="such names are not allowed there")
def test_run_with_a_path_that_is_not_utf8_is_written_as_csv(tmp_path):
    run = sample_run(count=2)
    run.images["id"] = Images([0, 1], [0, 1], (str(tmp_path / os.fsdecode(b"\xff")), str(tmp_path / "b")))
    write_run(run, tmp_path)
    assert (tmp_path / "images.csv").exists()
    assert read_run(tmp_path).images["id"].paths == run.images["id"].paths


def test_run_folder_moved_with_its_pictures_finds_them(tmp_path):
    write_run(sample_run(tmp_path / "run" / "pictures"), tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert all(os.path.isfile(path) for path in read_run(tmp_path / "moved").images["id"].paths)


def test_write_run_over_an_earlier_run_leaves_none_of_its_files(tmp_path):
    write_run(sample_run(methods=("msp", "ebo", "adascale")), tmp_path)
    (tmp_path / "ood" / "mine.csv").write_text("a,b\n")
    (tmp_path / "images.parquet").write_text("of another run")
    new = sample_run(methods=("msp",), seed=1)
    new.images = {}
    write_run(new, tmp_path)
    assert {path.name for path in tmp_path.glob("*/*")} == {"msp.csv", "mine.csv"}
    assert_same(read_run(tmp_path), new)


def test_tables_beside_a_run_are_named_and_left_out(tmp_path):
    run = sample_run()
    write_run(run, tmp_path)
    shutil.copy(tmp_path / "ood" / "msp.csv", tmp_path / "ood" / "knn.csv")
    (found,) = load(tmp_path)
    assert [one.name for one in found.methods] == ["msp", "adascale"]
    assert any("knn.csv" in note for note in found.notes)


def test_interrupted_write_leaves_an_incomplete_folder(tmp_path, monkeypatch):
    write_run(sample_run(), tmp_path)

    def fail(*args, **keywords):
        raise OSError("disk full")

    monkeypatch.setattr(run_module, "_plain", fail)
    interrupted = sample_run(seed=1)
    interrupted.settings = {"seed": np.int64(1)}
    with pytest.raises(OSError, match="disk full"):
        write_run(interrupted, tmp_path)
    with pytest.raises(ResultError, match=r"without run\.json.*evaluate again"):
        load(tmp_path)


def test_folder_of_an_earlier_version_gives_one_sentence(tmp_path, capsys):
    (tmp_path / "images.csv").write_text("set,side,path,label,prediction,class\n")
    assert command("report", tmp_path) == 2
    assert (
        "images.csv without run.json, from an interrupted run or an earlier version"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2; expected 1"),
        ({"methods": None}, "not a run of openood-adascale"),
        ({"scheme": "x"}, "scheme: 'x'; expected ood or fsood"),
        ({"near": ["cats", "cats"]}, "near, far: 'cats'; expected names of their own"),
        ({"near": ["nearood", "dogs"]}, "'nearood'; expected names of their own"),
        ({"images": "../images.csv"}, r"file '\.\./images\.csv'; expected ood/NAME\.csv"),
        ({"images": "images.parquet"}, r"images\.parquet|pyarrow"),
        ({"far": []}, "columns or sets"),
    ],
)
def test_read_run_with_a_changed_run_json_says_why(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(run_module, "_can_be_parquet", lambda paths: False)
    path = write_run(sample_run(), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ResultError, match=message):
        read_run(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "\0", '{"format": 1}', '"format"', '{"format": [1]}'])
def test_read_run_with_a_damaged_run_json_says_so(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ResultError, match=r"run\.json"):
        read_run(tmp_path)


def test_read_run_opens_no_file_outside_the_folder(tmp_path):
    path = write_run(sample_run(), tmp_path / "run")
    about = json.loads(path.read_text())
    for name in ("/etc/passwd", "ood/../../x.csv", "ood\\..\\x.csv/", "ood/a/b.csv", 3):
        about["methods"][0]["table"] = name
        path.write_text(json.dumps(about))
        with pytest.raises(ResultError):
            read_run(tmp_path / "run")
    (tmp_path / "x.csv").write_text("kept")
    write_run(sample_run(), tmp_path / "run")
    assert (tmp_path / "x.csv").read_text() == "kept"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("score_msp", "score_other", "columns or sets .*score_other"),
        ("prediction", "predicted", "columns or sets"),
        ("\ncats,", "\nlions,", "columns or sets .*lions"),
    ],
)
def test_read_run_with_a_changed_table_of_images_says_why(tmp_path, monkeypatch, old, new, message):
    monkeypatch.setattr(run_module, "_can_be_parquet", lambda paths: False)
    write_run(sample_run(), tmp_path)
    path = tmp_path / "images.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ResultError, match=message):
        read_run(tmp_path)
    path.write_text("set,path\n1,2,3\n")
    with pytest.raises(ResultError):
        read_run(tmp_path)


def test_run_with_methods_on_other_images_is_an_error():
    first, second = sample_run(count=3).methods[0], sample_run(count=4).methods[1]
    with pytest.raises(ResultError, match=r"id: \[3, 4\] images; expected the same images"):
        Run([first, second], ("cats", "dogs"), ("exotic",))
    with pytest.raises(ResultError, match="scores of id: empty or NaN"):
        MethodResult("msp", first.table, scores={"id": np.array([1, np.nan])})


def test_methods_with_one_label_are_told_apart():
    table = sample_run().methods[0].table
    run = Run([MethodResult("knn", table), MethodResult("KNN", table)], ("cats", "dogs"), ("exotic",))
    assert [one.label for one in run.methods] == ["KNN [knn]", "KNN [KNN]"]
    assert run.files() == ["knn", "KNN_2"]


def test_results_of_evaluate_become_a_run():
    """Any objects with the attributes of Result; the report does not import the evaluation."""

    def result(name, **changes):
        method = next(one for one in run.methods if one.name == name)
        images = {
            key: SimpleNamespace(labels=one.labels, predictions=one.predictions, paths=(),
                                 percentiles=method.percentiles.get(key))
            for key, one in run.images.items()
        }  # fmt: skip
        return SimpleNamespace(
            **{"table": method.table, "scores": method.scores, "search_results": method.search,
               "near": run.near, "far": run.far,
               "scheme": "ood", "images": images, "classes": run.classes, **changes}
        )  # fmt: skip

    run = sample_run()
    made = Run.from_results(
        {"msp": result("msp"), "adascale": result("adascale")},
        {"msp": "Softmax"},
        {"adascale": {"k1": 1}},
        id="insects",
    )
    assert [one.label for one in made.methods] == ["Softmax", "AdaSCALE-A"]
    assert (made.id, made.classes, made.methods[1].settings) == ("insects", run.classes, {"k1": 1})
    assert list(made.methods[1].percentiles) == ["id", "cats", "dogs", "exotic"]
    with pytest.raises(ResultError, match="ebo: other OOD sets or scheme than the first method"):
        Run.from_results({"msp": result("msp"), "ebo": result("adascale", scheme="fsood")})
    with pytest.raises(ResultError, match="expected at least one method"):
        Run.from_results({})

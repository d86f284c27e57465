"""The result format: what is written is read, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import command, sample_run

from openood_adascale.errors import ResultError
from openood_adascale.report.importers import load
from openood_adascale.report.run import MethodResult, Run, image_table, read_run, write_run


@pytest.fixture(params=["csv", "parquet"])
def table_format(request, monkeypatch):
    if request.param == "csv":
        monkeypatch.setattr(pd.DataFrame, "to_parquet", lambda *args, **keywords: __import__("no pyarrow"))
    else:
        pytest.importorskip("pyarrow")
    return request.param


def assert_same(read: Run, run: Run) -> None:
    for name in ("near", "far", "scheme", "id", "network", "classes", "settings", "title", "notes"):
        assert getattr(read, name) == getattr(run, name), name
    assert [(one.name, one.label) for one in read.methods] == [(one.name, one.label) for one in run.methods]
    for one, other in zip(read.methods, run.methods, strict=True):
        pd.testing.assert_frame_equal(one.table, other.table.round(2))
        assert (one.search is None) == (other.search is None)
    pd.testing.assert_frame_equal(read.images, run.images, check_dtype=False)


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
    files = {file.relative_to(tmp_path / "run").as_posix() for file in (tmp_path / "run").rglob("*.*")}
    assert files == {
        "run.json", f"images.{table_format}", "ood/msp.csv", "ood/adascale.csv", "search/adascale.csv",
    }  # fmt: skip


@pytest.mark.parametrize("path", ["a,b\n\"c'.png", "NA", "nan", "名.png", " x ", "a\rb", "\udcff"])
def test_run_with_odd_names_is_read_as_it_was(tmp_path, table_format, path):
    keys, values = ("id", "NA", 'a,"b', "exotic"), np.array([0.1, 1 / 3])
    table = sample_run(count=2).methods[0].table.set_axis(["NA", 'a,"b', "nearood", "exotic", "farood"])
    one = SimpleNamespace(labels=[1, -1], predictions=[0, 2], paths=(tmp_path / path, tmp_path / "b"))
    images = image_table({"score_nan": dict.fromkeys(keys, values)}, dict.fromkeys(keys, one))
    run = Run([MethodResult("nan", table, label="x|y")], ("NA", 'a,"b'), ("exotic",), images=images)
    write_run(run, tmp_path / "run")
    assert_same(read_run(tmp_path / "run"), run)


def test_run_folder_moved_with_its_pictures_finds_them(tmp_path):
    write_run(sample_run(tmp_path / "run" / "pictures"), tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert all(map(os.path.isfile, read_run(tmp_path / "moved").images["path"]))


def test_write_run_over_an_earlier_run_is_the_new_run(tmp_path, capsys):
    write_run(sample_run(methods=("msp", "ebo", "adascale")), tmp_path)
    (tmp_path / "images.csv").write_text("of another run")
    new = sample_run(methods=("msp",), seed=1)
    new.images = new.images.iloc[:0].drop(columns="score_msp")
    write_run(new, tmp_path)
    assert not list(tmp_path.glob("images.*"))
    assert_same(read_run(tmp_path), new)
    (found,) = load(tmp_path)
    assert [one.name for one in found.methods] == ["msp"]
    assert any("adascale.csv, ebo.csv" in note for note in found.notes)


def test_interrupted_write_leaves_an_incomplete_folder(tmp_path, capsys):
    class Broken:
        def __str__(self):
            raise OSError("disk full")

    write_run(sample_run(), tmp_path)
    interrupted = sample_run(seed=1)
    interrupted.settings = {"seed": Broken()}
    with pytest.raises(OSError, match="disk full"):
        write_run(interrupted, tmp_path)
    assert command("report", tmp_path) == 2
    assert "without run.json, from an interrupted run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2.*expected format 1"),
        ({"methods": None}, "not a run that can be read"),
        ({"scheme": "../ood"}, r"scheme '\.\./ood'"),
        ({"near": ["cats", "cats"]}, "near, far: 'cats'; expected names of their own"),
        ({"near": ["nearood", "dogs"]}, "'nearood'; expected names of their own"),
        ({"images": "images.csv"}, "images.csv"),
        ({"far": []}, "columns or sets .*exotic"),
        *(
            (text, r"run\.json")
            for text in ("", "[]", "{", "\0", '{"format": 1}', '"format"', '{"format": [1]}')
        ),
    ],
)
def test_read_run_with_a_changed_run_json_says_why(tmp_path, change, message):
    path = write_run(sample_run(), tmp_path)
    text = change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
    path.write_text(text)
    with pytest.raises(ResultError, match=message):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", 3])
def test_read_run_opens_no_file_outside_the_folder(tmp_path, name):
    path = write_run(sample_run(), tmp_path / "run")
    shutil.copy(tmp_path / "run" / "ood" / "msp.csv", tmp_path / "x.csv")
    about = json.loads(path.read_text())
    about["methods"][0]["name"] = name
    path.write_text(json.dumps(about))
    with pytest.raises(ResultError):
        read_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("score_msp", "score_other", "columns or sets .*score_other"),
        ("prediction", "predicted", "columns or sets"),
        ("cats", "lions", "columns or sets .*lions"),
        ("0,0,", "0,0,nan", "NaN|can be read"),
    ],
)
def test_read_run_with_a_changed_table_of_images_says_why(tmp_path, monkeypatch, old, new, message):
    monkeypatch.setattr(pd.DataFrame, "to_parquet", lambda *args, **keywords: __import__("no pyarrow"))
    write_run(sample_run(), tmp_path)
    path = tmp_path / "images.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ResultError, match=message):
        read_run(tmp_path)
    path.write_text("set,path\n1,2,3\n")
    with pytest.raises(ResultError):
        read_run(tmp_path)


def test_run_with_methods_on_other_images_is_an_error():
    with pytest.raises(ResultError, match=r"id: \[3, 4\] images; expected the same images"):
        image_table({"score_msp": {"id": np.zeros(3)}, "score_ebo": {"id": np.zeros(4)}})
    with pytest.raises(ResultError, match=r"id: \[0\] images"):
        image_table({"score_msp": {"id": np.zeros(0)}})
    images = image_table({"score_msp": {"id": np.array([1, np.nan])}})
    with pytest.raises(ResultError, match="score_msp of id: NaN; expected a number per image"):
        Run(sample_run().methods[:1], images=images)


def test_methods_with_one_label_are_told_apart():
    table = sample_run().methods[0].table
    run = Run([MethodResult("knn", table), MethodResult("KNN", table)], ("cats", "dogs"), ("exotic",))
    assert [one.label for one in run.methods] == ["KNN [knn]", "KNN [KNN]"]


def test_results_of_evaluate_become_a_run():
    """Any objects with the attributes of Result; the report does not import the evaluation."""
    run = sample_run()
    parts = dict(list(run.images.groupby("set", sort=False)))

    def result(method, **changes):
        own = {"near": run.near, "far": run.far, "scheme": "ood", "classes": run.classes, **changes}
        p = run.values(method, "percentile")
        images = {
            key: SimpleNamespace(
                labels=part["label"], predictions=part["prediction"], paths=(), percentiles=p.get(key)
            )
            for key, part in parts.items()
        }
        return SimpleNamespace(
            table=method.table, scores=run.values(method), search_results=method.search, images=images, **own
        )

    msp, adascale = run.methods
    made = Run.from_results(
        {"msp": result(msp), "adascale": result(adascale)},
        {"msp": "Softmax"},
        {"adascale": {"k1": 1}},
        id="insects",
    )
    assert [one.label for one in made.methods] == ["Softmax", "AdaSCALE-A"]
    assert (made.id, made.classes, made.methods[1].settings) == ("insects", run.classes, {"k1": 1})
    wanted = run.images.drop(columns="oodness_adascale")
    pd.testing.assert_frame_equal(made.images, wanted, check_like=True, check_dtype=False)
    with pytest.raises(ResultError, match="ebo: other OOD sets or scheme than the first method"):
        Run.from_results({"msp": result(msp), "ebo": result(adascale, scheme="fsood")})
    with pytest.raises(ResultError, match="expected at least one method"):
        Run.from_results({})

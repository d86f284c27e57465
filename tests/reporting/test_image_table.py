"""images.csv: every number beside the image that it is of, and back again."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from report_files import save_table

from openood_adascale.errors import ResultError
from openood_adascale.evaluation.per_image import PerImage
from openood_adascale.evaluation.result import Result
from openood_adascale.reporting.gather import collect
from openood_adascale.reporting.image_table import COLUMNS, read, write

HOSTILE = (
    "plain.png", "a,b.png", 'q"uo\'te.png', "new\nline.png", "re\rturn.png", os.fsdecode(b"latin\xff.png"), "=1+1.png",
    "<b>.png", " space .png", "NA", "日本.png", "-1",
)  # fmt: skip


def results(count=12, paths=HOSTILE, base="/data"):
    rng = np.random.default_rng(0)
    found = {}
    known = {
        key: PerImage(
            np.arange(count) % 3 if key == "id" else np.full(count, -1),
            np.arange(count) % 4,
            tuple(f"{base}/{key}/{path}" for path in paths),
        )
        for key in ("id", "n, 1", "f")
    }
    for name in ("msp", "adascale", "my own, method"):
        scores = {key: rng.normal(size=count) * 1e5 for key in known}
        images = known
        if name == "adascale":
            images = {k: replace(v, percentiles=80 + 5 * rng.random(count)) for k, v in known.items()}
        found[name] = Result(
            pd.DataFrame(), scores, None, ("n, 1",), ("f",), "ood", images, ("cat", 'd"o,g', "=ox")
        )
    return found


def test_back_again(tmp_path):
    want = results()
    path = write(want, tmp_path / "run" / "images.csv")
    got = read(path)
    assert list(got) == list(want)
    for name, result in want.items():
        saved = got[name]
        assert (list(saved.near), list(saved.far), saved.classes) == (
            ["n, 1"], ["f"], {0: "cat", 1: 'd"o,g', 2: "=ox"},
        )  # fmt: skip
        for key, known in result.images.items():
            np.testing.assert_array_equal(saved.of(key), result.scores[key])
            again = saved.images[key]
            assert again.paths == known.paths
            np.testing.assert_array_equal(again.labels, known.labels)
            np.testing.assert_array_equal(again.predictions, known.predictions)
            if known.percentiles is None:
                assert again.percentiles is None
            else:
                np.testing.assert_array_equal(again.percentiles, known.percentiles)
    assert got["msp"].accuracy == pytest.approx(100 * np.mean(np.arange(12) % 3 == np.arange(12) % 4))
    assert [entry.name for entry in path.parent.iterdir()] == ["images.csv"]


def test_what_a_user_reads(tmp_path):
    path = write(results(6, HOSTILE[:6]), tmp_path / "images.csv")
    with pd.option_context(
        "mode.string_storage", "python"
    ):  # pyarrow's text, where that is there, holds no such path
        table = pd.read_csv(path, encoding_errors="surrogateescape", keep_default_na=False)
    assert tuple(table.columns[:6]) == COLUMNS
    assert list(table.columns[6:]) == [
        "score_msp",
        "score_adascale",
        "score_my own, method",
        "percentile_adascale",
    ]
    assert len(table) == 18
    row = table.iloc[1]
    assert list(row[:6]) == ["id", "id", f"/data/id/{HOSTILE[1]}", "1", 1, 'd"o,g']
    assert row["score_adascale"] == results(6, HOSTILE[:6])["adascale"].scores["id"][1]
    assert table["label"].iloc[-1] == ""
    assert table["class"].iloc[3] == ""  # a class without a name


def test_paths_begin_at_the_csv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(results(2, ("a.png", "b.png"), base="here"), "images.csv")
    assert read(path)["msp"].images["f"].paths[0] == str(tmp_path / "here/f/a.png")
    path.write_text(path.read_text().replace(str(tmp_path) + "/", ""))
    moved = tmp_path / "elsewhere" / "images.csv"
    moved.parent.mkdir()
    path.rename(moved)
    assert read(moved)["msp"].images["f"].paths[0] == str(tmp_path / "elsewhere/here/f/a.png")


def test_images_without_files_or_classes(tmp_path):
    found = results()
    found = {
        name: replace(
            result,
            classes=(),
            images={k: replace(v, paths=(), unknown="x") for k, v in result.images.items()},
        )
        for name, result in found.items()
    }
    got = read(write(found, tmp_path / "images.csv"))
    assert got["msp"].images["f"].paths == ()
    assert "tells no files" in got["msp"].images["f"].unknown
    assert got["msp"].classes == {}
    bare = {name: replace(result, images={}) for name, result in found.items()}
    got = read(write(bare, tmp_path / "images.csv"))
    assert got["msp"].images["id"].predictions.tolist() == [-1] * 12
    assert got["msp"].accuracy is None


def test_a_method_with_predictions_of_its_own(tmp_path):
    found = results()
    own = {
        key: replace(known, predictions=known.predictions[::-1]) for key, known in found["msp"].images.items()
    }
    found["msp"] = replace(found["msp"], images=own)
    again = read(write({"adascale": found["adascale"], "msp": found["msp"]}, tmp_path / "images.csv"))
    head = (tmp_path / "images.csv").read_bytes().partition(b"\r")[0].decode()
    assert head.endswith("score_adascale,score_msp,percentile_adascale,prediction_msp")
    for name in ("adascale", "msp"):
        for key, known in found[name].images.items():
            np.testing.assert_array_equal(again[name].images[key].predictions, known.predictions)


def test_results_on_other_images_do_not_go_into_one(tmp_path):
    found = results()
    images = dict(found["adascale"].images)
    nowhere = {key: replace(known, paths=()) for key, known in images.items()}

    def refused(first, other, **change):
        with pytest.raises(ResultError, match="adascale: its images or OOD sets are not those of msp"):
            write({"msp": first, "adascale": replace(other, **change)}, tmp_path / "images.csv")

    msp = found["msp"]
    refused(msp, found["adascale"], images=nowhere)
    refused(
        msp, found["adascale"], images={**images, "f": replace(images["f"], paths=images["f"].paths[::-1])}
    )
    refused(msp, found["adascale"], near=())
    refused(msp, found["adascale"], scores={key: values[1:] for key, values in msp.scores.items()})
    without = replace(msp, images=nowhere)
    refused(without, without, images={**nowhere, "id": replace(nowhere["id"], labels=np.zeros(12, int))})
    write(
        {"msp": without, "adascale": replace(without, images={**nowhere, "f": nowhere["f"]})},
        tmp_path / "images.csv",
    )
    (tmp_path / "images.csv").unlink()
    with pytest.raises(ResultError, match="no results"):
        write({}, tmp_path / "images.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("set,side", "side,set", "line 1: the header"),
        ("score_msp", "score_adascale", "line 1: the header"),
        ("score_msp", "percentile_msp", "line 1: the header"),
        ("score_msp", "prediction_msp", "line 1: the header"),
        ("score_msp", "msp", "line 1: the header"),
        ("id,id,/data/id/plain", "id,id,,/data/id/plain", "line 2: 11 columns; expected 10"),
        ("id,id,", "di,id,", "the set 'di' on the side 'id'"),
        ("f,far,", "f,between,", "the set 'f' on the side 'between'"),
        ("f,far,", "nearood,far,", "the set 'nearood'"),
        ("f,far,/data/f/plain", "f,near,/data/f/plain", "the set 'f' is on several sides"),
        ("/data/id/plain.png,0,0", "/data/id/plain.png,-1,0", "the class '-1'"),
        ("/data/id/plain.png,0,0", "/data/id/plain.png,1.5,0", "the class '1.5'"),
        (",cat,", ",cat,nan", "column score_msp: "),
        (",cat,", ",cat,x", "column score_msp: could not convert"),
    ],
)
def test_other_files(tmp_path, before, after, message):
    path = write(results(), tmp_path / "images.csv")
    text = path.read_bytes().decode(errors="surrogateescape")
    assert before in text
    path.write_bytes(text.replace(before, after, 1).encode(errors="surrogateescape"))
    with pytest.raises(ResultError, match=message):
        read(path)
    save_table(tmp_path / "ood" / "msp.csv", 70)
    assert any("left out" in note and "images.csv" in note for note in collect(tmp_path).notes)


def test_only_the_known_images_or_nothing(tmp_path):
    path = write(results(), tmp_path / "images.csv")
    lines = path.read_bytes().split(b"\r\n")
    path.write_bytes(b"\r\n".join(line for line in lines if not line.startswith((b'"n, 1"', b"f,"))))
    with pytest.raises(ResultError, match="at least one OOD set"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(ResultError, match="line 1: the header is ''"):
        read(path)
    with pytest.raises(ResultError, match="cannot be read"):
        read(tmp_path / "absent.csv")


def test_a_folder_of_evaluate_is_gathered(tmp_path):
    found = results()
    write(found, tmp_path / "images.csv")
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "adascale.csv").write_text(
        'percentile,auroc\n"(60.0, 80.0)",81\n"(60.0, 85.0)",80\n'
    )
    run = collect(tmp_path)
    assert list(run.searches) == ["adascale"]
    assert not run.notes
    methods = {method.label: method for method in run.methods["ood"]}
    assert set(methods) == {"MSP", "AdaSCALE-A", "my own, method"}
    np.testing.assert_array_equal(methods["MSP"].scores[0].id, found["msp"].scores["id"])
    assert methods["AdaSCALE-A"].scores[0].images["f"].percentiles is not None
    assert len({method.scores[0].source for method in methods.values()}) == 1
    (tmp_path / "fsood").mkdir()
    (tmp_path / "images.csv").rename(tmp_path / "fsood" / "images.csv")
    assert list(collect(tmp_path).methods) == ["fsood"]

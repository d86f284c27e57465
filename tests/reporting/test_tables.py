"""OpenOOD's result tables: read as OpenOOD writes them, refused where broken."""

from __future__ import annotations

import pandas as pd
import pytest
from result_files import HEADER, IMAGENET, authors, imagenet_csv, main_csv, seeds_csv

from openood_adascale.errors import ResultError
from openood_adascale.reporting.tables import read_table


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


def rows(*names: str) -> str:
    return HEADER + "".join(f"{name},1,2,3,4,5\n" for name in names)


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
        (
            rows("inat", "farood", "ssb", "nearood"),
            "line 3: 'farood' before 'nearood'; expected near OOD sets",
        ),
        (
            rows("nearood", "inat", "farood"),
            "line 2: 'nearood', the average over the rows above it, has none",
        ),
        (rows("ssb", "nearood", "farood"), "line 4: 'farood', the average over the rows above it, has none"),
        ("dataset" + rows("a", "farood", "nearood", "b", "farood"), "line 4: 'nearood', .* has none"),
        (rows("ssb", "NearOOD", "inat", "farood"), "line 3: the row 'NearOOD'; expected 'nearood'"),
        (rows("ssb", "", "nearood"), "line 3: the row ''; expected the name of an OOD set"),
        (rows("s\0b", "nearood"), r"line 2: the row 's\\x00b'; expected the name of an OOD set|contains NUL"),
        (
            rows("ssb_hard", "SSB-hard", "nearood"),
            "line 3: the rows 'ssb_hard' and 'SSB-hard' are one OOD set",
        ),
        (HEADER + "ssb,1,2 ± -3,3,4,5\nnearood,1,1,1,1,1\n", "line 2, column AUROC: '2 ± -3'"),
        (HEADER + "ssb,1,2 ± 1e999,3,4,5\nnearood,1,1,1,1,1\n", "line 2, column AUROC: '2 ± 1e999'"),
        (HEADER + f"ssb,{'1' * 100_000}x,2,3,4,5\nnearood,1,1,1,1,1\n", r"column FPR@95: '1{40,80}…'"),
        (HEADER + f"ssb,{'1' * 200_000},2,3,4,5\n", "cannot be read as a UTF-8 CSV file: field larger"),
    ],
)
def test_malformed_files_say_where(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ResultError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500 + len(str(path))


def test_many_rows_take_no_quadratic_time(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text(rows(*(f"set{i}" for i in range(20_000)), "nearood"))
    assert len(read_table(path).near) == 20_000


def test_sets_of_any_alphabet(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(rows("α", "β", "nearood", "日本", "farood"), encoding="utf-8-sig")
    read = read_table(path)
    assert (read.near, read.far) == (("α", "β"), ("日本",))


def test_not_utf8(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(HEADER.encode() + "ssb,1 ± 2,2,3,4,5".encode("latin1"))
    with pytest.raises(ResultError, match="UTF-8"):
        read_table(path)

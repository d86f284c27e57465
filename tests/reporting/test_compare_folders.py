"""compare on folders: what is no result file, or no file at all."""

from __future__ import annotations

import os

import pytest
from result_files import HEADER, RESNET50, authors, comparison, imagenet_csv


def test_folder(tmp_path, capsys):
    folder = tmp_path / RESNET50
    imagenet_csv(folder / "ood" / "adascale.csv", authors())
    imagenet_csv(folder / "fsood" / "adascale.csv", authors(scheme="fsood"))
    imagenet_csv(folder / "ood" / "knn.csv", authors())
    imagenet_csv(folder / "ood" / "msp.csv", authors())
    (folder / "search_adascale.csv").write_text("p_min,p_max,auroc\n60,80,90\n")
    imagenet_csv(folder / "report" / "leaderboard" / "ood" / "AdaSCALE-A.csv", authors() + 1)
    assert comparison(folder) == 0
    said = capsys.readouterr()
    assert said.out.count("all within") == 2
    assert "not compared" in said.err
    assert "knn" in said.err
    assert comparison(folder, "--method", "adascale") == 2
    imagenet_csv(folder / "ood" / "adascale_logit.csv", authors(method="AdaSCALE-L") - 2)
    assert comparison(folder) == 1
    (folder / "ood" / "gen.csv").write_text(HEADER + "ssb_hard,1,2\n")
    assert comparison(folder) == 2
    assert "gen.csv, line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.mkdir(), lambda path: path.symlink_to("absent"), lambda path: path.symlink_to(path),
     os.mkfifo],
    ids=["folder", "broken link", "link to itself", "pipe"],
)  # fmt: skip
def test_what_is_no_file_is_left_out(tmp_path, capsys, spoil):
    folder = tmp_path / RESNET50
    imagenet_csv(folder / "ood" / "adascale.csv", authors())
    spoil(folder / "ood" / "x.csv")
    assert comparison(folder) == 0
    said = capsys.readouterr()
    assert "x.csv: not a regular file" in said.err
    assert said.out.count("all within") == 1
    (folder / "ood" / "adascale.csv").unlink()
    assert comparison(folder) == 2
    said = capsys.readouterr().err
    assert "x.csv: not a regular file" in said
    assert "no result CSV" in said


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that opens and cannot be read")
def test_unreadable_files(tmp_path, capsys):
    folder = tmp_path / RESNET50
    imagenet_csv(folder / "ood" / "adascale.csv", authors())
    (folder / "ood" / "x.csv").symlink_to("/proc/self/mem")
    assert comparison(folder) == 2
    said = capsys.readouterr()
    assert "x.csv: cannot be read" in said.err
    assert said.out.count("all within") == 1
    assert comparison(folder / "ood" / "x.csv") == 2


def test_quoted_headers_and_byte_order_marks_are_results_too(tmp_path):
    folder = tmp_path / RESNET50 / "ood"
    imagenet_csv(folder / "adascale.csv", authors())
    text = (folder / "adascale.csv").read_text()
    (folder / "adascale.csv").write_text(
        '"","FPR@95","AUROC"' + text.removeprefix(",FPR@95,AUROC"), "utf-8-sig"
    )
    assert comparison(folder) == 0


def test_names_do_not_reach_the_terminal_raw(tmp_path, capsys):
    name = os.fsdecode(b"a\x1b[31m\xff.csv")
    imagenet_csv(tmp_path / RESNET50 / "ood" / name, authors())
    assert comparison(tmp_path / RESNET50, "--method", "adascale") == 0
    out = capsys.readouterr().out
    assert r"a\x1b[31m\udcff.csv" in out
    (tmp_path / RESNET50 / "ood" / name).write_text("x")
    assert comparison(tmp_path / RESNET50 / "ood" / name) == 2
    assert r"a\x1b[31m\udcff.csv, line 1" in capsys.readouterr().err


def test_nothing_there(tmp_path, capsys):
    assert comparison(tmp_path) == 2
    assert comparison(tmp_path / "absent") == 2
    (tmp_path / "other.csv").write_text("a,b\n")
    assert comparison(tmp_path) == 2
    assert "1 other CSV files, e.g. other.csv" in capsys.readouterr().err

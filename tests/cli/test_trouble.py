"""What befalls an evaluation from outside: a full disk, folders that may not be written, a clock set back, two at once."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import quick_process
from command_line import call_here as call
from hindrances import small_files, without_roots_rights

pytest.importorskip("resource", reason="limits of a process, as POSIX has them")


def right(folders, out="out"):
    """Tables of every method, of each image and of the searches."""
    found = {path.relative_to(folders / out): path.read_bytes() for path in (folders / out).rglob("*.csv")}
    assert {"images.csv", "ood/msp.csv", "ood/adascale.csv", "search/adascale.csv"} <= {
        name.as_posix() for name in found
    }
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory, filled):
    """What is asked for, and what comes of it where nothing is in the way."""
    folders = filled(tmp_path_factory.mktemp("asked"))
    asked = [
        "evaluate", "--network", folders / "net.py:network", "--id", folders / "id", "--val", folders / "val",
        "--ood-val", folders / "oodval", "--near", f"n={folders / 'near'}", "--far", f"f={folders / 'far'}",
        "--methods", "msp,adascale,scale", "--workers", "0", "--quiet", "--store", folders / "store",
        "--out", folders / "out",
    ]  # fmt: skip
    assert call(*asked).returncode == 0
    (folders / "out").rename(folders / "right")
    return folders, asked, right(folders, "right")


@pytest.fixture
def folders(told):
    """As they were before anything was asked for."""
    for name in ("out", "store"):
        shutil.rmtree(told[0] / name, ignore_errors=True)
    return told[0]


def started(asked, before=None):
    return quick_process.run(["-m", "openood_adascale", *asked], before=before)


def no_traceback(done):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("size", [0, 300, 2_000, 6_000, 30_000])
def test_a_disk_that_runs_full(folders, told, size):
    """No file may grow beyond ``size`` bytes: what ends up there is whole, and with room again all is as it should be."""
    _, asked, expected = told
    last = no_traceback(started(asked, partial(small_files, size)))
    assert "File too large" in last or "No space left" in last
    assert str(folders) in last
    for path in (folders / "out").rglob("*.csv"):
        assert path.read_bytes() == expected[path.relative_to(folders / "out")]
    assert not list(folders.rglob("*.tmp*"))
    assert call(*asked).returncode == 0
    assert right(folders) == expected


@pytest.mark.parametrize("where", ["out", "store"])
def test_a_folder_that_may_not_be_written(folders, told, where):
    _, asked, expected = told
    closed = folders / where
    closed.mkdir(exist_ok=True)
    closed.chmod(0o555)
    last = no_traceback(started(asked, without_roots_rights))
    assert str(closed) in last
    assert "Permission denied" in last or "may not" in last
    closed.chmod(0o755)
    closed.rmdir()
    assert call(*asked).returncode == 0
    assert right(folders) == expected


def test_a_clock_set_back(folders, told):
    """All that is there is of the future: it is taken up, where it is of the same content, and made anew where not."""
    _, asked, expected = told
    assert call(*asked).returncode == 0
    paths = list(folders.rglob("*"))
    for path in paths:
        os.utime(path, (4e9, 4e9))
    assert call(*asked).returncode == 0
    assert right(folders) == expected
    later = folders / "id/a/picture 000.png"
    before = later.read_bytes()
    try:
        later.write_bytes((folders / "id/b/picture 001.png").read_bytes())
        assert call(*asked).returncode == 0
    finally:
        later.write_bytes(before)
        for path in filter(Path.exists, paths):
            os.utime(path)
    assert {name for name, content in right(folders).items() if content != expected[name]} >= {
        name for name in expected if name.parent.name == "ood"
    }


def test_two_at_once(folders, told):
    _, asked, expected = told
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(started, [asked, asked]))
    assert [done.returncode for done in both] == [0, 0], both[0].stderr + both[1].stderr
    assert right(folders) == expected
    assert not list(folders.rglob("*.tmp*"))

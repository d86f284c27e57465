"""Folders of small pictures, with networks for them in a file."""

from __future__ import annotations

import sys

import pytest
from helpers import COLOURS, NETWORK, picture, pictures


def fill(folder):
    (folder / "net.py").write_text(NETWORK)
    pictures(folder / "id", 30, 1, ["a", "b", "c"])
    pictures(folder / "val", 24, 2)
    for number, name in enumerate(("oodval", "near", "far")):
        pictures(folder / name, 20, 3 + number)
    for name in COLOURS:
        for number in range(4):
            picture(folder / "colours" / name / f"{number}.png", colour=COLOURS[name])
    return folder


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = {*sys.modules}
    yield fill(tmp_path)
    for name in {*sys.modules} - known:
        if name.startswith("net"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The same, for tests that write nothing into it."""
    return fill(tmp_path_factory.mktemp("shared"))

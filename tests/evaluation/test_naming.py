"""Files of one's own code."""

from __future__ import annotations

import os
import py_compile
import sys

from openood_adascale.evaluation.naming import own_object


def test_a_file_that_was_changed_at_once(tmp_path, monkeypatch):
    """To a text as long, within the second: what Python has kept of it says the same."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "my_changed.py"
    path.write_text("def classes():\n    return 4\n")
    py_compile.compile(str(path))
    kept = path.stat()
    path.write_text(path.read_text().replace("4", "7"))
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    before = [*tmp_path.rglob("*")]
    assert own_object("network", f"{path}:classes", "a function")() == 7
    assert [*tmp_path.rglob("*")] == before
    del sys.modules["my_changed"]

"""The notebooks in examples/, run from the first cell to the last in an empty folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel (the extra test)")
nbformat = pytest.importorskip("nbformat")

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, monkeypatch, tmp_path):
    """Run a notebook with fewer images and one epoch; return its text output and the number of pictures."""
    path = os.pathsep.join(filter(None, [str(EXAMPLES.parent), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        cell.source = cell.source.replace("epochs=10", "epochs=1")
        cell.source = cell.source.replace("load_data(0)", "load_data(0, 520, 130, 130, 60)")
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    return printed, sum("image/png" in output.get("data", {}) for output in outputs)


def test_first_look_draws_and_decides(monkeypatch, tmp_path):
    printed, pictures = run("first_look.ipynb", monkeypatch, tmp_path)
    assert "reported as OOD: {'letters'" in printed
    assert pictures == 3


def test_comparison_searches_and_writes_report(monkeypatch, tmp_path):
    printed, _ = run("comparison.ipynb", monkeypatch, tmp_path)
    assert "90 candidates" in printed
    assert (tmp_path / "letters-report" / "index.html").is_file()

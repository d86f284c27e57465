"""The notebooks in examples/, run from their first cell to their last, in an empty folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from openood_adascale import demo

nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel (the extra test)")
nbformat = pytest.importorskip("nbformat")

EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = {
    "first_look": ["threshold ", "out of distribution: {'known': "],
    "comparison": ["72 candidates; the best: ", "digits-report/report.html"],
}
TRAINED = """
import torch
from openood_adascale import demo
demo.train = lambda data, progress: torch.load({path!r}, weights_only=False)
"""
PICTURES = {"first_look": 3, "comparison": 1}


def test_all_are_tried():
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(SAID)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The demo's network, which both notebooks train: once, and not to its end."""
    path = tmp_path_factory.mktemp("trained") / "network.pt"
    _, training_data = demo.load_benchmark()
    torch.save(demo.train(training_data, epochs=2, progress=False), path)
    return path


@pytest.mark.parametrize("name", SAID)
def test_it_runs(name, trained, tmp_path, monkeypatch):
    path = os.pathsep.join(filter(None, [str(EXAMPLES.parent), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(TRAINED.format(path=str(trained))))
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(
        output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"
    )
    for words in SAID[name]:
        assert words in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[name]

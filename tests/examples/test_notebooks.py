"""The notebooks in examples/, run from their first cell to their last, in an empty folder and with no names of another's."""

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
BEGINNING = """
%reset -f
import os, torch
from openood_adascale import demo
os.chdir({folder!r})
demo.train = lambda data, progress, load=torch.load: load({trained!r}, weights_only=False)
del os, torch, demo
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


@pytest.fixture(scope="module")
def kernel():
    """One for all, since it takes seconds to start."""
    path = os.pathsep.join(filter(None, [str(EXAMPLES.parent), os.environ.get("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        client = nbclient.NotebookClient(nbformat.v4.new_notebook(), timeout=300, kernel_name="python3")
        with client.setup_kernel():
            yield client


@pytest.mark.parametrize("name", SAID)
def test_it_runs(name, kernel, trained, tmp_path):
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    beginning = BEGINNING.format(folder=str(tmp_path), trained=str(trained))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(beginning))
    kernel.nb = notebook
    for number, cell in enumerate(notebook.cells):
        kernel.execute_cell(cell, number)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(
        output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"
    )
    for words in SAID[name]:
        assert words in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[name]

"""What OpenOOD's own code writes is read."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from openood_bench import find_openood

from openood_adascale.reporting.compare import compare
from openood_adascale.reporting.gather import collect


@pytest.fixture
def ood_evaluator(monkeypatch):
    """OpenOOD's OODEvaluator, with stand-ins for what its module imports beside the metrics."""
    root = find_openood()
    if root is None:
        pytest.skip("OpenOOD is not there: set OPENOOD_ROOT to a checkout of it, or put one on Python's path")
    names = {
        "openood": {},
        "openood.utils": {"Config": object},
        "openood.utils.comm": {},
        "openood.postprocessors": {"BasePostprocessor": object},
        "openood.evaluators": {"__path__": [str(Path(root) / "openood" / "evaluators")]},
    }
    for name, content in names.items():
        module = types.ModuleType(name)
        module.__dict__.update({"__path__": [], **content})
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["openood.utils"].comm = sys.modules["openood.utils.comm"]
    importlib.invalidate_caches()
    yield importlib.import_module("openood.evaluators.ood_evaluator").OODEvaluator
    for name in [name for name in sys.modules if name.startswith("openood.evaluators.")]:
        del sys.modules[name]


def test_openoods_own_writer_and_metrics(tmp_path, ood_evaluator):
    folder = tmp_path / "imagenet_resnet50_test_ood_ood_adascale_default" / "s0" / "ood"
    (folder / "scores").mkdir(parents=True)
    config = types.SimpleNamespace(
        output_dir=str(folder),
        recorder=types.SimpleNamespace(save_csv=True, save_scores=True),
        postprocessor=types.SimpleNamespace(APS_mode=False),
        dataset=types.SimpleNamespace(name="imagenet"),
    )
    rng = np.random.default_rng(0)
    sets = {"nearood": ("ssb_hard", "ninco"), "farood": ("inaturalist", "textures", "openimageo")}
    shift = {
        "imagenet": 2.0,
        "ssb_hard": 1.0,
        "ninco": 0.5,
        "inaturalist": -1,
        "textures": -1,
        "openimageo": 0,
    }

    class Postprocessor:
        def inference(self, net, name):
            conf = rng.normal(shift[name], 1, 400).astype(np.float32)
            label = np.full(400, 3 if name == "imagenet" else -1)
            return np.full(400, 3), conf, label

    evaluator = ood_evaluator(config)
    network = types.SimpleNamespace(eval=lambda: None)
    loaders = {split: {name: name for name in names} for split, names in sets.items()}
    for _ in range(2):
        evaluator.eval_ood(network, {"test": "imagenet"}, loaders, Postprocessor())
    result = compare(folder / "ood.csv")
    assert result.what == {
        "dataset": "imagenet", "network": "resnet50", "method": "AdaSCALE-A", "scheme": "ood",
    }  # fmt: skip
    assert any("2 complete run(s)" in note for note in result.notes)
    assert {figure.ood_set for figure in result.figures} >= {"openimageo", "nearood", "farood"}

    collected = collect(folder.parents[1])
    (method,) = collected.methods["ood"]
    assert method.label == "AdaSCALE-A"
    # The page's numbers from main.py's npz files are those of its CSV (else a note would say so).
    assert not any("older" in note for note in collected.notes)
    assert method.scores[0].accuracy == 100

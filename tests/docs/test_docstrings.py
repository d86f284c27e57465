"""Examples in docstrings: they run with the names of the documents, and every public class has one."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import helpers
import pytest
import torch

import openood_adascale
from openood_adascale import functional, metrics
from openood_adascale.detectors.base import Detector
from openood_adascale.detectors.registry import METHODS
from openood_adascale.evaluation.per_image import PerImage
from openood_adascale.evaluation.result import Result

PACKAGE = Path(openood_adascale.__file__).parent
WITH_EXAMPLES = [
    path.relative_to(PACKAGE.parent)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8") and path.parts[-2:] != ("pytorch_ood", "classes.py")
]
PUBLIC = [
    *dict.fromkeys(method.detector for method in METHODS.values()),
    *dict.fromkeys(method.detector.settings_class for method in METHODS.values()),
    Detector, PerImage, Result, openood_adascale.Benchmark, openood_adascale.evaluate,
    openood_adascale.feature_cache, metrics.ood_metrics, functional.scaling_factor,
]  # fmt: skip


@pytest.fixture
def names(tmp_path, monkeypatch):
    """Return the names that an example can use; its files go to a temporary directory."""
    monkeypatch.chdir(tmp_path)
    public = {name: getattr(openood_adascale, name) for name in openood_adascale.__all__}
    found = helpers.names()
    modules = {"torch": torch, "openood_adascale": openood_adascale}
    return {**public, **found, **modules, "model": found["network"], "loader": found["val_loader"]}


def run(found, names):
    """Run the examples of an object and of its members."""
    failures: list[str] = []
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(exclude_empty=True).find(found, "example", extraglobs=names):
        runner.run(test, out=failures.append)
    assert not failures, "".join(failures)
    assert runner.summarize(verbose=False).attempted > 0


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_module_examples_run(path, names):
    if "pytorch_ood" in path.parts:
        pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")
    run(importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__")), names)


def test_pytorch_ood_class_examples_run(names):
    pytest.importorskip("pytorch_ood", minversion="0.4", reason="needs pytorch-ood 0.4 or later")
    from openood_adascale.integrations import pytorch_ood

    for name in sorted({*pytorch_ood.__all__} - {"Adapted", "MethodDetector", "adapt"}):
        made = getattr(pytorch_ood, name)
        run(made, {**names, name: made, "model": names["network"], "loader": names["val_loader"]})


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_public_name_has_example(public):
    assert ">>>" in (public.__doc__ or "")

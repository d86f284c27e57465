"""OpenOOD without some packages, on modules with the imports of OpenOOD's."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openood_adascale.plugin.system import Stubs

Make = Callable[..., Any]


OPENMAX = ("openood.postprocessors.openmax_postprocessor", "libmr", "OpenMax")
OPENMAX_SOURCE = """
    import sys, libmr
    import importlib.util
    spec_then = importlib.util.find_spec('libmr')
    class OpenMax:
        pass
    def fit_weibull():
        return libmr.MR()
    """
DRAEM = ("openood.preprocessors.draem_preprocessor", "imgaug", "DRAEM")
DRAEM_SOURCE = """
    import imgaug.augmenters as iaa
    class DRAEMPreprocessor:
        def __init__(self, config):
            self.augmenters = [iaa.GammaContrast((0.5, 2.0))]
    def other():
        return iaa.pillike.Equalize()
    """
CASES = pytest.mark.parametrize(
    ("names", "source", "class_name", "function"),
    [
        (OPENMAX, OPENMAX_SOURCE, "OpenMax", "fit_weibull"),
        (DRAEM, DRAEM_SOURCE, "DRAEMPreprocessor", "other"),
    ],
    ids=["libmr", "imgaug"],
)


def forget(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)


@CASES
def test_absent_package(
    openood_module: Make,
    stubs: Stubs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    names: Any,
    source: str,
    class_name: str,
    function: str,
) -> None:
    module_name, package, user = names
    forget(monkeypatch, package)
    monkeypatch.setitem(sys.modules, package, None)  # import of it fails as if it were not there

    def others():  # this package's own come as they are needed
        return {
            name: found for name, found in sys.modules.items() if not name.startswith("openood_adascale.")
        }

    before = others()
    module = openood_module(module_name, source)
    assert others() == before
    assert importlib.util.find_spec(package) is None
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "CUDA" not in line]
    assert package in line
    assert user in line
    assert "OPENOOD_ADASCALE_DISABLE=stubs" in line

    for use in (lambda: getattr(module, class_name)(None), getattr(module, function)):
        with pytest.raises(ImportError, match=f"{user}.*{package}.*pip install") as raised:
            use()
        assert raised.value.name == package
    stubs.undo()
    assert "__init__" not in vars(getattr(module, class_name)) or class_name == "DRAEMPreprocessor"


def test_stub_has_a_spec_while_it_is_there(openood_module: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libmr", None)
    module = openood_module(OPENMAX[0], OPENMAX_SOURCE)
    assert module.spec_then.name == "libmr"
    assert not hasattr(module.libmr, "__file__")  # what walks over modules is not to fail


def test_stub_is_removed_after_an_error(openood_module: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libmr", None)
    with pytest.raises(ZeroDivisionError):
        openood_module(OPENMAX[0], "import libmr\n1 / 0")
    assert sys.modules["libmr"] is None


@CASES
def test_switched_off(
    openood_module: Make,
    monkeypatch: pytest.MonkeyPatch,
    names: Any,
    source: str,
    class_name: str,
    function: str,
) -> None:
    monkeypatch.setenv("OPENOOD_ADASCALE_DISABLE", "stubs")
    monkeypatch.setitem(sys.modules, names[1], None)
    with pytest.raises(ImportError):
        openood_module(names[0], source)


def test_package_that_is_there_is_used(
    openood_module: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "libmr.py").write_text("class MR: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    forget(monkeypatch, "libmr")
    module = openood_module(OPENMAX[0], OPENMAX_SOURCE)
    assert type(module.fit_weibull()).__name__ == "MR"
    assert module.OpenMax()
    assert "libmr" not in capsys.readouterr().err


def test_package_that_fails_to_import_counts_as_absent(
    openood_module: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "imgaug").mkdir()
    (tmp_path / "imgaug" / "__init__.py").write_text("raise ImportError('libGL.so.1: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    forget(monkeypatch, "imgaug")
    module = openood_module(DRAEM[0], DRAEM_SOURCE)
    with pytest.raises(ImportError, match=r"libGL\.so\.1"):
        module.DRAEMPreprocessor(None)
    assert "imgaug" not in sys.modules

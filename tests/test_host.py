"""What lets OpenOOD run without CUDA and without some packages; on modules that do what OpenOOD's do."""

from __future__ import annotations

import importlib
import importlib.util
import io
import multiprocessing.process
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import openood_adascale_autoload as autoload
from openood_adascale import host, plugin


@pytest.fixture(autouse=True)
def _host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything as in a process without the plugin, and no CUDA."""
    was_active = plugin._active
    plugin.unregister()
    for variable in (autoload.VARIABLE, host.DEVICE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(autoload, "_said", set())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    yield
    host.undo()
    monkeypatch.undo()
    if was_active:
        plugin.register()


def openood_module(name: str, source: str = "import torch") -> Any:
    """An OpenOOD module of that name after the plugin has seen it executed."""
    module = ModuleType(name)
    with host.stand_ins(module):
        exec(dedent(source), vars(module))
    host.redirect_cuda(module)
    return module


# --- the device ---------------------------------------------------------------------------------------------


def test_cuda_goes_to_the_cpu_and_back(capsys: pytest.CaptureFixture) -> None:
    own = "cuda" in vars(torch.Tensor), vars(torch.nn.Module)["cuda"]
    openood_module("openood.networks.lenet")
    tensor, network = torch.ones(2, requires_grad=True), torch.nn.Linear(2, 2)
    assert tensor.cuda() is tensor
    assert tensor.cuda(0, non_blocking=True).device.type == "cpu"
    assert torch.ones(1, 2, 3, 3).cuda(memory_format=torch.channels_last).device.type == "cpu"
    assert network.cuda() is network.cuda(device=1) is network
    openood_module("openood.networks.resnet50")
    (line,) = capsys.readouterr().err.splitlines()
    assert "no CUDA here" in line
    assert "OPENOOD_ADASCALE_DISABLE=device" in line

    host.undo()
    assert own == ("cuda" in vars(torch.Tensor), vars(torch.nn.Module)["cuda"])
    host.undo()


def test_undo_leaves_what_others_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    openood_module("openood.networks.lenet")
    theirs = lambda tensor: tensor  # noqa: E731
    torch.Tensor.cuda = theirs  # type: ignore[method-assign]
    host.undo()
    assert torch.Tensor.cuda is theirs
    del torch.Tensor.cuda


@pytest.mark.parametrize(
    ("variable", "value"), [("OPENOOD_ADASCALE_DISABLE", "device"), ("OPENOOD_DEVICE", "")]
)
def test_cuda_is_left_alone(monkeypatch: pytest.MonkeyPatch, capsys: Any, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    if variable == "OPENOOD_DEVICE":  # not set means CUDA where there is some
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    module = openood_module("openood.networks.utils")
    assert "cuda" not in vars(torch.Tensor)
    assert module.torch is torch
    assert capsys.readouterr().err == ""


def test_device_variable_wins_over_cuda(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("OPENOOD_DEVICE", "meta")  # a device that every machine has
    module = openood_module("openood.postprocessors.temp_scaling_postprocessor")
    assert torch.ones(2).cuda().device.type == "meta"
    assert torch.nn.Linear(2, 2).cuda().weight.device.type == "meta"
    assert module.torch.ones(1, device="cuda").device.type == "meta"
    assert module.torch.ones(1, device="cpu").device.type == "cpu"
    assert "OPENOOD_DEVICE=meta" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["cuda:99", "gpu", "cuda:x"])
def test_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OPENOOD_DEVICE", value)
    openood_module("openood.networks.lenet")  # importing OpenOOD is no reason to fail
    for _ in range(2):
        with pytest.raises(ValueError, match=f"OPENOOD_DEVICE='{value}'.*cpu, cuda, cuda:<index>, mps"):
            torch.ones(2).cuda()


def test_other_ways_to_name_the_device() -> None:
    temperature = openood_module(
        "openood.postprocessors.temp_scaling_postprocessor",
        "import torch\nvalue = lambda: torch.ones(1, device='cuda') * 1.5",
    )
    assert temperature.value().tolist() == [1.5]
    for name in ("gmm", "mds_ensemble"):
        module = openood_module(
            f"openood.postprocessors.{name}_postprocessor",
            "import torch\nalpha = lambda: torch.cuda.FloatTensor([1, 0.5])",
        )
        alpha = module.alpha()
        assert (alpha.dtype, alpha.device.type, alpha.tolist()) == (torch.float32, "cpu", [1, 0.5])
    clip = openood_module(
        "openood.networks.clip",
        """
        import types, torch
        clip = types.ModuleType('clip')
        clip.load = lambda backbone, device: (backbone, str(device))
        loaded = lambda: clip.load('ViT', device='cuda')
        """,
    )
    assert clip.loaded() == ("ViT", "cpu")


def test_checkpoint_saved_on_cuda_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"fc.weight": torch.ones(2)}, checkpoint)

    def loaded(torch: Any, **kwargs: Any) -> Any:
        checkpoint.seek(0)
        return torch.load(checkpoint, **kwargs)["fc.weight"]

    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            loaded(torch)
    for name in ("networks.utils", "networks.net_utils_", "postprocessors.ensemble_postprocessor"):
        module = openood_module(f"openood.{name}")
        assert loaded(module.torch).device.type == "cpu"
        assert loaded(module.torch, map_location="meta").device.type == "meta"


def test_proxy_is_torch_in_all_else_and_is_taken_away() -> None:
    module = openood_module("openood.networks.utils")
    assert module.torch is not torch
    assert module.torch.nn is torch.nn
    assert module.torch.cuda.device_count is torch.cuda.device_count
    assert module.torch.__spec__ is torch.__spec__
    assert isinstance(module.torch, ModuleType)
    assert isinstance(torch.ones(1), module.torch.Tensor)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.torch.no_such_name
    other = openood_module("openood.networks.lenet")
    assert other.torch is torch
    host.undo()
    assert module.torch is torch


def test_children_are_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(multiprocessing.process, "parent_process", lambda: object())
    openood_module("openood.networks.lenet")
    assert "cuda" in vars(torch.Tensor)
    assert capsys.readouterr().err == ""


# --- packages that are absent -------------------------------------------------------------------------------

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
    monkeypatch: pytest.MonkeyPatch, capsys: Any, names: Any, source: str, class_name: str, function: str
) -> None:
    module_name, package, user = names
    forget(monkeypatch, package)
    monkeypatch.setitem(sys.modules, package, None)  # import of it fails as if it were not there
    before = dict(sys.modules)
    module = openood_module(module_name, source)
    assert sys.modules == before
    assert importlib.util.find_spec(package) is None
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "CUDA" not in line]
    assert package in line
    assert user in line
    assert "OPENOOD_ADASCALE_DISABLE=stand-ins" in line

    for use in (lambda: getattr(module, class_name)(None), getattr(module, function)):
        with pytest.raises(ImportError, match=f"{user}.*{package}.*pip install") as raised:
            use()
        assert raised.value.name == package
    host.undo()
    assert "__init__" not in vars(getattr(module, class_name)) or class_name == "DRAEMPreprocessor"


def test_stand_in_has_a_spec_while_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libmr", None)
    module = openood_module(OPENMAX[0], OPENMAX_SOURCE)
    assert module.spec_then.name == "libmr"
    assert not hasattr(module.libmr, "__file__")  # what walks over modules is not to fail


def test_stand_in_is_removed_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libmr", None)
    with pytest.raises(ZeroDivisionError):
        openood_module(OPENMAX[0], "import libmr\n1 / 0")
    assert sys.modules["libmr"] is None


@CASES
def test_switched_off(
    monkeypatch: pytest.MonkeyPatch, names: Any, source: str, class_name: str, function: str
) -> None:
    monkeypatch.setenv("OPENOOD_ADASCALE_DISABLE", "stand-ins")
    monkeypatch.setitem(sys.modules, names[1], None)
    with pytest.raises(ImportError):
        openood_module(names[0], source)


def test_package_that_is_there_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "libmr.py").write_text("class MR: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    forget(monkeypatch, "libmr")
    module = openood_module(OPENMAX[0], OPENMAX_SOURCE)
    assert type(module.fit_weibull()).__name__ == "MR"
    assert module.OpenMax()
    assert "libmr" not in capsys.readouterr().err


def imgaug_of_2020(folder: Path) -> None:
    (folder / "imgaug").mkdir()
    (folder / "imgaug" / "__init__.py").write_text(
        "import numpy as np\n"
        "FLOATS, INTS, UINTS = (set(np.sctypes[kind]) for kind in ('float', 'int', 'uint'))\n"
    )
    (folder / "imgaug" / "augmenters.py").write_text("GammaContrast = lambda *args: args\n")


def test_imgaug_imports_under_numpy_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    if hasattr(np, "sctypes"):
        pytest.skip("NumPy 1 has np.sctypes")
    imgaug_of_2020(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    forget(monkeypatch, "imgaug")
    module = openood_module(DRAEM[0], DRAEM_SOURCE)
    assert module.DRAEMPreprocessor(None).augmenters
    imgaug = importlib.import_module("imgaug")
    assert {np.float16, np.float32, np.float64, np.longdouble} == imgaug.FLOATS
    assert {np.int8, np.int64} <= imgaug.INTS
    assert {np.uint8, np.uint64} <= imgaug.UINTS
    assert not hasattr(np, "sctypes")
    assert "np.sctypes" in capsys.readouterr().err


def test_package_that_fails_to_import_counts_as_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "imgaug").mkdir()
    (tmp_path / "imgaug" / "__init__.py").write_text("raise ImportError('libGL.so.1: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    forget(monkeypatch, "imgaug")
    module = openood_module(DRAEM[0], DRAEM_SOURCE)
    with pytest.raises(ImportError, match=r"libGL\.so\.1"):
        module.DRAEMPreprocessor(None)
    assert "imgaug" not in sys.modules
    assert "sctypes" not in vars(np)

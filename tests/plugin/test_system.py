"""``.cuda()`` without CUDA, and stubs for missing packages, on modules that imitate OpenOOD's."""

from __future__ import annotations

import importlib.util
import io
import multiprocessing.process
import sys
from types import ModuleType

import pytest
import torch

TEMPERATURE = "openood.postprocessors.temp_scaling_postprocessor"


def test_cuda_goes_to_cpu_and_back(openood_module, cuda, capsys):
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
    cuda.undo()
    assert own == ("cuda" in vars(torch.Tensor), vars(torch.nn.Module)["cuda"])


@pytest.mark.parametrize("variable", ["OPENOOD_ADASCALE_DISABLE", None])
def test_cuda_is_left_alone_if_switched_off_or_available(openood_module, monkeypatch, capsys, variable):
    if variable:
        monkeypatch.setenv(variable, "device")
    else:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    module = openood_module("openood.networks.utils")
    assert "cuda" not in vars(torch.Tensor)
    assert module.torch is torch
    assert capsys.readouterr().err == ""


def test_device_variable_has_precedence_over_cuda(openood_module, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("OPENOOD_DEVICE", "meta")  # a device that is always available
    module = openood_module(TEMPERATURE)
    assert torch.ones(2).cuda().device.type == "meta"
    assert torch.nn.Linear(2, 2).cuda().weight.device.type == "meta"
    assert module.torch.ones(1, device="cuda").device.type == "meta"
    assert module.torch.ones(1, device="cpu").device.type == "cpu"
    assert "OPENOOD_DEVICE=meta" in capsys.readouterr().err


@pytest.mark.parametrize("gpus", [0, 2])
def test_going_to_sends_cuda_calls_to_a_device_and_restores(openood_module, cuda, monkeypatch, capsys, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    module = openood_module(TEMPERATURE)
    monkeypatch.setitem(sys.modules, TEMPERATURE, module)
    own = vars(torch.nn.Module)["cuda"], vars(torch.Tensor).get("cuda"), module.torch
    capsys.readouterr()
    with cuda.going_to(torch.device("meta")):
        assert torch.ones(2).cuda().device.type == "meta"
        assert torch.nn.Linear(2, 2).cuda().weight.device.type == "meta"
        assert module.torch.ones(1, device="cuda").device.type == "meta"
        with cuda.going_to(torch.device("cpu")):
            assert torch.ones(2).cuda().device.type == "cpu"
            assert module.torch.ones(1, device="cuda").device.type == "cpu"
        assert torch.ones(2).cuda().device.type == "meta"
    assert own == (vars(torch.nn.Module)["cuda"], vars(torch.Tensor).get("cuda"), module.torch)
    monkeypatch.setenv("OPENOOD_ADASCALE_DISABLE", "device")
    with cuda.going_to(torch.device("meta")):
        assert vars(torch.Tensor).get("cuda") is own[1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", ["cuda:99", "gpu", "cuda:x"])
def test_unavailable_device_is_an_error_at_first_use(openood_module, monkeypatch, value):
    monkeypatch.setenv("OPENOOD_DEVICE", value)
    openood_module("openood.networks.lenet")
    for _ in range(2):
        with pytest.raises(ValueError, match=f"OPENOOD_DEVICE='{value}'.*cpu, cuda, cuda:<index>, mps"):
            torch.ones(2).cuda()


def test_other_ways_to_name_cuda_are_redirected(openood_module):
    source = "import torch\nvalue = lambda: torch.ones(1, device='cuda') * 1.5"
    assert openood_module(TEMPERATURE, source).value().tolist() == [1.5]
    for name in ("gmm", "mds_ensemble"):
        source = "import torch\nalpha = lambda: torch.cuda.FloatTensor([1, 0.5])"
        alpha = openood_module(f"openood.postprocessors.{name}_postprocessor", source).alpha()
        assert (alpha.dtype, alpha.device.type, alpha.tolist()) == (torch.float32, "cpu", [1, 0.5])
    source = """
        import types, torch
        clip = types.ModuleType('clip')
        clip.load = lambda backbone, device: (backbone, str(device))
        loaded = lambda: clip.load('ViT', device='cuda')
        """
    assert openood_module("openood.networks.clip", source).loaded() == ("ViT", "cpu")


@pytest.mark.parametrize(
    "name", ["networks.utils", "networks.net_utils_", "postprocessors.ensemble_postprocessor"]
)
def test_checkpoint_saved_on_cuda_loads(openood_module, monkeypatch, name):
    checkpoint = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"fc.weight": torch.ones(2)}, checkpoint)
    module = openood_module(f"openood.{name}")
    for options, device in (({}, "cpu"), ({"map_location": "meta"}, "meta")):
        checkpoint.seek(0)
        assert module.torch.load(checkpoint, **options)["fc.weight"].device.type == device


def test_proxy_of_torch_is_torch_in_all_else(openood_module, cuda):
    module = openood_module("openood.networks.utils")
    assert module.torch is not torch
    assert module.torch.nn is torch.nn
    assert module.torch.cuda.device_count is torch.cuda.device_count
    assert module.torch.__spec__ is torch.__spec__
    assert isinstance(module.torch, ModuleType)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.torch.no_such_name
    assert openood_module("openood.networks.lenet").torch is torch
    cuda.undo()
    assert module.torch is torch


def test_child_processes_print_nothing(openood_module, monkeypatch, capsys):
    monkeypatch.setattr(multiprocessing.process, "parent_process", lambda: object())
    openood_module("openood.networks.lenet")
    assert "cuda" in vars(torch.Tensor)
    assert capsys.readouterr().err == ""


# Stubs.

OPENMAX = "openood.postprocessors.openmax_postprocessor"
OPENMAX_SOURCE = """
    import importlib.util, libmr
    spec_then = importlib.util.find_spec('libmr')
    class OpenMax:
        pass
    def use():
        return libmr.MR()
    """
DRAEM = "openood.preprocessors.draem_preprocessor"
DRAEM_SOURCE = """
    import imgaug.augmenters as iaa
    class DRAEMPreprocessor:
        def __init__(self, config):
            self.augmenters = [iaa.GammaContrast((0.5, 2.0))]
    def use():
        return iaa.pillike.Equalize()
    """
CASES = pytest.mark.parametrize(
    ("name", "source", "package", "user", "class_name"),
    [
        (OPENMAX, OPENMAX_SOURCE, "libmr", "OpenMax", "OpenMax"),
        (DRAEM, DRAEM_SOURCE, "imgaug", "DRAEM preprocessor", "DRAEMPreprocessor"),
    ],
    ids=["libmr", "imgaug"],
)


@pytest.fixture
def without(monkeypatch):
    """without(package): its import fails as if it were not installed."""

    def forget(package):
        for name in [n for n in sys.modules if n.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    return forget


def installed(tmp_path, monkeypatch, package, content):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)


@CASES
def test_missing_package_is_an_error_at_use_only(
    openood_module, changes, without, capsys, name, source, package, user, class_name
):
    without(package)
    module = openood_module(name, source)
    assert sys.modules[package] is None
    assert f"{package}.augmenters" not in sys.modules
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "CUDA" not in line]
    assert f"{package} cannot be imported; only OpenOOD's {user} needs it" in line
    assert "OPENOOD_ADASCALE_DISABLE=stubs" in line
    for use in (lambda: getattr(module, class_name)(None), module.use):
        with pytest.raises(ImportError, match=f"{user}.*{package}.*pip install") as raised:
            use()
        assert raised.value.name == package
    initializer = getattr(module, class_name).__init__
    changes.undo()
    assert getattr(module, class_name).__init__ is not initializer


def test_stub_has_a_spec_and_no_file(openood_module, without):
    without("libmr")
    module = openood_module(OPENMAX, OPENMAX_SOURCE)
    assert module.spec_then.name == "libmr"
    assert not hasattr(module.libmr, "__file__")
    assert importlib.util.find_spec("libmr") is None


def test_stub_is_removed_after_an_error(openood_module, without):
    without("libmr")
    with pytest.raises(ZeroDivisionError):
        openood_module(OPENMAX, "import libmr\n1 / 0")
    assert sys.modules["libmr"] is None


def test_no_stubs_if_switched_off(openood_module, monkeypatch, without):
    monkeypatch.setenv("OPENOOD_ADASCALE_DISABLE", "stubs")
    without("libmr")
    with pytest.raises(ImportError):
        openood_module(OPENMAX, OPENMAX_SOURCE)


def test_installed_package_is_used(openood_module, monkeypatch, tmp_path, capsys):
    installed(tmp_path, monkeypatch, "libmr", "class MR: pass\n")
    module = openood_module(OPENMAX, OPENMAX_SOURCE)
    assert type(module.use()).__name__ == "MR"
    assert module.OpenMax()
    assert "libmr" not in capsys.readouterr().err


def test_package_that_fails_to_import_counts_as_missing(openood_module, monkeypatch, tmp_path):
    installed(tmp_path, monkeypatch, "imgaug", "raise ImportError('libGL.so.1: cannot open')\n")
    module = openood_module(DRAEM, DRAEM_SOURCE)
    with pytest.raises(ImportError, match=r"libGL\.so\.1"):
        module.DRAEMPreprocessor(None)
    assert "imgaug" not in sys.modules

"""``.cuda()`` without CUDA, on modules that imitate OpenOOD's."""

from __future__ import annotations

import io
import multiprocessing.process
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from openood_adascale.plugin.system import CudaRedirection

Make = Callable[..., Any]


def test_cuda_goes_to_the_cpu_and_back(
    openood_module: Make, cuda: CudaRedirection, capsys: pytest.CaptureFixture
) -> None:
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
    cuda.undo()


def test_undo_leaves_what_others_have_changed(
    openood_module: Make, cuda: CudaRedirection, monkeypatch: pytest.MonkeyPatch
) -> None:
    openood_module("openood.networks.lenet")
    theirs = lambda tensor: tensor  # noqa: E731
    torch.Tensor.cuda = theirs  # type: ignore[method-assign]
    cuda.undo()
    assert torch.Tensor.cuda is theirs
    del torch.Tensor.cuda


@pytest.mark.parametrize(
    ("variable", "value"), [("OPENOOD_ADASCALE_DISABLE", "device"), ("OPENOOD_DEVICE", "")]
)
def test_cuda_is_left_alone(
    openood_module: Make, monkeypatch: pytest.MonkeyPatch, capsys: Any, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    if variable == "OPENOOD_DEVICE":  # not set means CUDA where there is some
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    module = openood_module("openood.networks.utils")
    assert "cuda" not in vars(torch.Tensor)
    assert module.torch is torch
    assert capsys.readouterr().err == ""


def test_device_variable_wins_over_cuda(
    openood_module: Make, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("OPENOOD_DEVICE", "meta")  # a device that every machine has
    module = openood_module("openood.postprocessors.temp_scaling_postprocessor")
    assert torch.ones(2).cuda().device.type == "meta"
    assert torch.nn.Linear(2, 2).cuda().weight.device.type == "meta"
    assert module.torch.ones(1, device="cuda").device.type == "meta"
    assert module.torch.ones(1, device="cpu").device.type == "cpu"
    assert "OPENOOD_DEVICE=meta" in capsys.readouterr().err


@pytest.mark.parametrize("there", [0, 2])
def test_another_device_for_a_while(
    openood_module: Make, cuda: CudaRedirection, monkeypatch: pytest.MonkeyPatch, capsys: Any, there: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    name = "openood.postprocessors.temp_scaling_postprocessor"
    module = openood_module(name)
    monkeypatch.setitem(sys.modules, name, module)
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
    with cuda.going_to(torch.device("cpu")):
        assert torch.ones(2).cuda().device.type == "cpu"
    monkeypatch.setenv("OPENOOD_ADASCALE_DISABLE", "device")
    with cuda.going_to(torch.device("meta")):
        assert vars(torch.Tensor).get("cuda") is own[1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", ["cuda:99", "gpu", "cuda:x"])
def test_device_that_is_not_there(openood_module: Make, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OPENOOD_DEVICE", value)
    openood_module("openood.networks.lenet")  # importing OpenOOD is no reason to fail
    for _ in range(2):
        with pytest.raises(ValueError, match=f"OPENOOD_DEVICE='{value}'.*cpu, cuda, cuda:<index>, mps"):
            torch.ones(2).cuda()


def test_other_ways_to_name_the_device(openood_module: Make) -> None:
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


def test_checkpoint_saved_on_cuda_loads(openood_module: Make, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_proxy_is_torch_in_all_else_and_is_taken_away(openood_module: Make, cuda: CudaRedirection) -> None:
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
    cuda.undo()
    assert module.torch is torch


def test_children_are_silent(
    openood_module: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(multiprocessing.process, "parent_process", lambda: object())
    openood_module("openood.networks.lenet")
    assert "cuda" in vars(torch.Tensor)
    assert capsys.readouterr().err == ""

"""Tests of networks that are refused, and of wrapped, scripted and quantised ones that are used."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from openood_adascale import MSP, AdaSCALE
from openood_adascale.features.network import UnsupportedNetworkError, check_network

IMAGES = torch.randn(17, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LOADER = DataLoader(TensorDataset(IMAGES), 8)  # the last batch has one image


def make():
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    return nn.Sequential(*convolution, nn.Flatten(), nn.Linear(32, 5)).eval()


def offloaded():
    return pytest.importorskip("accelerate").cpu_offload(make(), torch.device("cpu"))


def exported():
    pytest.importorskip("torch", "2.2")  # torch.export.Dim
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    return torch.export.export(make(), (IMAGES[:8],), dynamic_shapes=shapes).module()


def sharded():
    network = make()
    tensor = network[5].weight
    fake = type("DTensor", (nn.Parameter,), {})
    network[5]._parameters["weight"] = fake(tensor.detach())
    return network


def fully_sharded():
    network = make()
    base = type("FSDPModule", (), {"__module__": "torch.distributed.fsdp"})
    network.__class__ = type("FSDPSequential", (base, nn.Sequential), {})
    return network


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("network", "told"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), "'1.weight' of Sequential is not initialised yet"),
        (lambda: nn.Linear(2, 2, device="meta"), "'weight' of Linear is on the meta device"),
        (lambda: make().to("meta"), "'0.weight' of Sequential is on the meta device"),
        (offloaded, "'0.weight' of Sequential is on the meta device, .* offloaded by accelerate"),
        (lambda: torch.jit.script(make()), "Sequential is a TorchScript program"),
        (lambda: torch.jit.trace(make(), IMAGES), "Sequential is a TorchScript program"),
        (lambda: torch.jit.freeze(torch.jit.script(make())), "Sequential is a TorchScript program"),
        (exported, "an exported program"),
        (sharded, "'5.weight' of Sequential is sharded"),
        (fully_sharded, "sharded by FSDP"),
    ],
)  # fmt: skip
def test_network_that_cannot_be_used_is_refused(network, told):
    network = network()
    with pytest.raises(UnsupportedNetworkError, match=f"^network: .*{told}"):
        check_network(network)
    with pytest.raises(UnsupportedNetworkError, match=told):
        AdaSCALE(network).fit(LOADER, progress=False)


def test_scripted_part_and_symbolic_trace_are_used():
    want = MSP(make()).score(IMAGES)
    scripted = make()
    scripted[0] = torch.jit.trace(scripted[0], IMAGES)
    for network in (scripted, torch.fx.symbolic_trace(make()), nn.DataParallel(make())):
        torch.testing.assert_close(MSP(network).score(IMAGES), want)


class Squeezing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(8, 5)

    def forward(self, images):
        return self.fc(self.layers(images).squeeze())


def test_network_that_squeezes_scores_a_single_image():
    torch.manual_seed(0)
    network = Squeezing().eval()
    detector = AdaSCALE(network).fit(LOADER, progress=False)
    whole = detector.predict_loader(LOADER, False)[1]
    torch.testing.assert_close(torch.from_numpy(whole), detector.score(IMAGES))
    torch.testing.assert_close(
        AdaSCALE(network).fit(LOADER, progress=False).score(IMAGES[16:]), detector.score(IMAGES)[16:]
    )


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_quantised_head_is_refused_and_quantised_backbone_is_used(kind):
    quantization = pytest.importorskip("torchao.quantization")
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
    backbone = copy.deepcopy(network)
    quantization.quantize_(network, getattr(quantization, kind)())
    with pytest.raises(UnsupportedNetworkError, match="its head Linear has a weight of type"):
        AdaSCALE(network).fit(LOADER, progress=False)
    is_inner = lambda module, name: isinstance(module, nn.Linear) and name == "1"  # noqa: E731
    quantization.quantize_(backbone, getattr(quantization, kind)(), filter_fn=is_inner)
    assert AdaSCALE(backbone).fit(LOADER, progress=False).score(IMAGES).isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantisation_is_named():
    network = torch.ao.quantization.quantize_dynamic(make(), {nn.Linear}, torch.qint8)
    with pytest.raises(ValueError, match="a linear layer that is not quantised"):
        MSP(network).score(IMAGES)

"""Small networks and images that the tests share; nothing here needs OpenOOD."""

from __future__ import annotations

import logging
import os
import weakref
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a thread for each of the processes that share the cores, and theirs
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# The networks of the tests are on the CPU, wherever they run; OpenOOD may be imported by any of them.
os.environ["OPENOOD_DEVICE"] = "cpu"
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from openood_adascale.evidence.encode import has_float16
from openood_adascale.evidence.sharing import forget

HEAD = 5
"""Images that go through a network while its head is looked for: two, the same two again, and the first alone."""
# On a logger, since what a network's own code names is part of what the network is.
logging.getLogger("networks").calls = weakref.WeakKeyDictionary()


class TinyNet(nn.Module):
    """64 rectified activations, dropout and batch norm, so that a wrong mode shows."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5),
        )  # fmt: skip
        self.fc = nn.Linear(64, 5, bias=bias)

    @property
    def calls(self) -> list[int]:
        """Sizes of the batches so far."""
        return logging.getLogger("networks").calls.setdefault(self, [])

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return self.fc(self.features(images))


@pytest.fixture(autouse=True)
def _nothing_shared() -> None:
    """What an earlier test's pass has left in memory spares no later one's."""
    forget()


@pytest.fixture(autouse=True)
def _blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are composed and saved, but nothing is drawn in them, which takes most of a report's time, unless a test
    is of what is drawn (``@pytest.mark.drawn``)."""
    if request.node.get_closest_marker("drawn"):
        return
    savefig = Figure.savefig

    def save_blank(figure: Figure, *args: Any, **kwargs: Any) -> None:
        figure.set_layout_engine("none")
        savefig(figure, *args, **{**kwargs, "dpi": 20})

    monkeypatch.setattr(Figure, "draw", lambda figure, renderer: None)
    monkeypatch.setattr(Figure, "savefig", save_blank)


@pytest.fixture
def network() -> TinyNet:
    torch.manual_seed(0)
    network = TinyNet()
    with torch.no_grad():
        for _ in range(20):  # batch statistics that differ from eval mode's
            network.train()(torch.randn(16, 3, 8, 8) * 2 + 1)
    network.calls.clear()
    return network.eval()


def make_images(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + shift


def make_loader(images: Tensor, batch_size: int = 16, **kwargs) -> DataLoader:
    labels = torch.arange(len(images)) % 5
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size, **kwargs)


@pytest.fixture
def id_images() -> Tensor:
    return make_images(50, 1)


@pytest.fixture
def ood_images() -> Tensor:
    return make_images(40, 2, shift=0.7)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """OpenOOD's scripts take minutes: first, so that at the end no process waits for another."""
    items.sort(key=lambda item: "openood" not in item.path.parts)
    if not has_float16(torch.device("cpu")):
        lacking = pytest.mark.skip(reason=f"torch {torch.__version__} has no float16 on a CPU")
        for item in items:
            parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
            if any(
                value in ("float16", torch.float16)
                for value in parameters
                if isinstance(value, str | torch.dtype)
            ):
                item.add_marker(lacking)

"""Fixtures and hypothesis profiles of all tests; nothing here needs OpenOOD."""

from __future__ import annotations

import copy
import functools
import os
from threading import RLock
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from tqdm import tqdm

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from networks import TinyNet
    from torch import Tensor

if "PYTEST_XDIST_WORKER" in os.environ:  # a thread for each of the processes that share the cores, and theirs
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# The networks of the tests are on the CPU, wherever they run; OpenOOD may be imported by any of them.
os.environ["OPENOOD_DEVICE"] = "cpu"

_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("quick", derandomize=True, max_examples=30, database=None, **_COMMON)
# pytest -n0 --hypothesis-profile=long tests/detectors/test_settings.py
settings.register_profile("long", max_examples=10_000, print_blob=True, **_COMMON)
settings.load_profile("quick")
tqdm.set_lock(RLock())  # the default is one for all processes, and a mutant that mutmut kills may hold it


@pytest.fixture(autouse=True)
def _save_figures_undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save figures without drawing them, which takes most of a report's time, except in tests marked ``drawn``."""
    from matplotlib.figure import Figure

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
    return copy.deepcopy(_trained_network())


@functools.cache
def _trained_network() -> TinyNet:
    import torch
    from networks import TinyNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TinyNet()
        with torch.no_grad():
            for _ in range(20):  # batch statistics that differ from eval mode's
                network.train()(torch.randn(16, 3, 8, 8) * 2 + 1)
    network.calls.clear()
    return network.eval()


@pytest.fixture
def id_images() -> Tensor:
    from networks import make_images

    return make_images(50, 1)


@pytest.fixture
def ood_images() -> Tensor:
    from networks import make_images

    return make_images(40, 2, shift=0.7)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """OpenOOD's scripts take minutes: first, so that at the end no process waits for another."""
    import torch

    from openood_adascale.features.extractor import supports_float16

    items.sort(key=lambda item: "openood" not in item.path.parts)
    if not supports_float16(torch.device("cpu")):
        lacking = pytest.mark.skip(reason=f"torch {torch.__version__} has no float16 on a CPU")
        for item in items:
            parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
            if any(
                value in ("float16", torch.float16)
                for value in parameters
                if isinstance(value, str | torch.dtype)
            ):
                item.add_marker(lacking)

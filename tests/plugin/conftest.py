"""The plugin's parts by themselves, on modules that imitate OpenOOD's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import torch
from openood_support import fake, run

from openood_adascale.plugin import import_hook, system
from openood_adascale.plugin.registration import register, unregister
from openood_adascale.plugin.system import CudaRedirection, Stubs

__all__ = ["fake", "run"]


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything as in a process without the plugin, and no CUDA."""
    unregister()
    for variable in (import_hook.VARIABLE, system.VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(import_hook, "_said", set())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    yield
    monkeypatch.undo()
    register()


@pytest.fixture
def cuda(untouched: None) -> Iterator[CudaRedirection]:
    """A redirection of the test's own."""
    redirection = CudaRedirection()
    yield redirection
    redirection.undo()


@pytest.fixture
def stubs(untouched: None) -> Iterator[Stubs]:
    """Stubs of the test's own."""
    own = Stubs()
    yield own
    own.undo()


@pytest.fixture
def openood_module(cuda: CudaRedirection, stubs: Stubs) -> Callable[..., Any]:
    """openood_module(name, source): an OpenOOD module of that name after the plugin has seen it executed."""

    def make(name: str, source: str = "import torch") -> Any:
        module = ModuleType(name)
        with stubs.during(module):
            exec(dedent(source), vars(module))
        cuda.redirect(module)
        return module

    return make

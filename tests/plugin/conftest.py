"""Fixtures of the plugin's tests, which run without OpenOOD."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import torch
from openood_support import fake, run

from openood_adascale.plugin import import_hook, system
from openood_adascale.plugin.import_hook import Changes
from openood_adascale.plugin.registration import register, unregister
from openood_adascale.plugin.system import CudaRedirection, stub_for_missing_package

__all__ = ["fake", "run"]


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unregister the plugin, and hide CUDA."""
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
def changes() -> Iterator[Changes]:
    """Changes to the classes of modules that miss a package."""
    made = Changes()
    yield made
    made.undo()


@pytest.fixture
def openood_module(cuda: CudaRedirection, changes: Changes) -> Callable[..., Any]:
    """openood_module(name, source): an OpenOOD module of that name, executed with the plugin."""

    def make(name: str, source: str = "import torch") -> Any:
        module = ModuleType(name)
        with stub_for_missing_package(module, changes):
            exec(dedent(source), vars(module))
        cuda.redirect(module)
        return module

    return make

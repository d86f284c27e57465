"""The import without pytorch-ood, or with one that is too old."""

from __future__ import annotations

import importlib
import sys
import types

import pytest

NAME = "openood_adascale.integrations.pytorch_ood"


@pytest.mark.parametrize(
    ("installed", "why"), [(None, "import of pytorch_ood"), (types.ModuleType("old"), "cannot import name")]
)
def test_error_names_what_to_install(monkeypatch, installed, why):
    for module in [name for name in sys.modules if name.startswith((NAME, "pytorch_ood"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pytorch_ood", installed)
    monkeypatch.setitem(sys.modules, "pytorch_ood.api", installed)
    with pytest.raises(
        ImportError, match=r"needs pytorch-ood 0\.4 or later.*pip install 'openood-adascale\[pytorch-ood\]'"
    ) as found:
        importlib.import_module(NAME)
    assert found.value.name == "pytorch_ood"
    assert why in str(found.value)

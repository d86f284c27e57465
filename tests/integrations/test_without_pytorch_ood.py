"""Where pytorch-ood is not installed, or is too old: the error says what to do, and nothing else needs it."""

from __future__ import annotations

import pytest
import quick_process

HIDDEN = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'pytorch_ood':
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""
OLD = """
import sys, types
sys.modules['pytorch_ood'] = types.ModuleType('pytorch_ood')
sys.modules['pytorch_ood'].__path__ = []
sys.modules['pytorch_ood.api'] = types.ModuleType('pytorch_ood.api')
"""
TRY = """
import openood_adascale, openood_adascale.integrations
from openood_adascale import *
try:
    from openood_adascale.integrations.pytorch_ood import AdaSCALE
except ImportError as error:
    print(error.name, error)
"""


@pytest.mark.parametrize(("before", "why"), [(HIDDEN, "No module named"), (OLD, "cannot import name")])
def test_the_error_says_what_to_install(before, why):
    done = quick_process.run(["-c", before + TRY], check=True, timeout=300)
    assert done.stdout.startswith(
        "pytorch_ood openood_adascale.integrations.pytorch_ood needs pytorch-ood 0.4 or later"
    )
    assert why in done.stdout
    assert done.stdout.strip().endswith(": pip install 'openood-adascale[pytorch-ood]'")

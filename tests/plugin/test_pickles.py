"""What a pickled postprocessor remembers, damaged; without OpenOOD."""

import numpy as np
import pytest
import torch

from openood_adascale.detectors.registry import METHODS
from openood_adascale.plugin import pickles
from openood_adascale.plugin.freshness import MadeFor
from openood_adascale.plugin.yml import Configuration, YmlSource


def remembered():
    configured = Configuration.parse(METHODS["adascale"], {"postprocessor_args": {"k1": 2}})
    search = {(("k1", 1.0),): 80.0, (("k1", 2.0),): 81.0}
    source, state = YmlSource("configs", "adascale", "cifar10"), torch.arange(5.0)
    return pickles.Remembered(
        configured, configured.settings, state, MadeFor("n"), True, True, source, search
    )


def test_it_comes_back():
    kept = remembered()
    found = pickles.load(pickles.dump(kept), METHODS["adascale"])
    assert (found.settings, found.made_for, found.search) == (kept.settings, MadeFor("n"), kept.search)
    assert torch.equal(found.state, kept.state)


def refusal(stored):
    try:
        pickles.load(stored, METHODS["adascale"])
    except RuntimeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("key", pickles.dump(remembered()))
@pytest.mark.parametrize(
    "junk", [np.arange(3), np.array([]), torch.ones(2), [np.arange(3)], {"a": torch.ones(2)}]
)
def test_arrays_anywhere(key, junk):
    """Their truth cannot be told, which NumPy and torch say with errors of their own."""
    told = refusal({**pickles.dump(remembered()), key: junk})
    assert told is None or told.startswith("the pickled postprocessor 'adascale'")
    assert told or key != "format"

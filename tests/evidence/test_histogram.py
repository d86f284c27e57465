"""The distribution of activations, counted in one pass."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openood_adascale.errors import Unavailable
from openood_adascale.evidence.histogram import (
    BINS,
    Counter,
    bin_of,
    lower_edge,
    middle,
    nearest_edge,
    quantile,
)


def counted(*batches):
    counter = Counter()
    for batch in batches:
        counter.add(batch)
    return counter.result()


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=finite))
def test_bins_are_in_order_and_narrow(values):
    numbers = torch.from_numpy(np.sort(values))
    bins = bin_of(numbers)
    assert ((bins >= 0) & (bins < BINS)).all()
    assert (bins.diff() >= 0).all()
    assert (lower_edge(bins) <= numbers).all()
    above = lower_edge(bins + 1)
    assert (numbers < above)[~above.isnan()].all()
    assert torch.equal(bin_of(lower_edge(bins)), bins)
    exact = numbers.double()
    near = torch.finfo(torch.float32).tiny
    assert ((middle(bins) - exact).abs() <= 2**-15 * exact.abs() + near).all()
    snapped = lower_edge(nearest_edge(numbers)).double()
    assert (
        (snapped - exact).abs()[snapped.isfinite()] <= (2**-15 * exact.abs() + near)[snapped.isfinite()]
    ).all()


@given(
    hnp.arrays(np.float32, st.integers(1, 200), elements=finite.filter(lambda x: abs(x) < 1e30)),
    st.floats(0, 1),
)
@settings(deadline=None, max_examples=30)
def test_quantiles_are_as_near_as_promised(values, fraction):
    got = quantile(counted(torch.from_numpy(values)), fraction)
    values = values.astype(np.float64)
    ends = [np.quantile(values, fraction, method=method) for method in ("lower", "higher")]
    # what NumPy and we round differently between the two
    slack = 1e-12 * np.abs(values).max() + 2.0**-126
    assert abs(got - np.quantile(values, fraction)) <= 2**-15 * np.abs(ends).max() + slack


@pytest.mark.parametrize("draw", ["normal", "lognormal", "gamma", "half zeros"])
def test_quantiles_of_activations(draw):
    rng = np.random.default_rng(0)
    values = {
        "normal": rng.normal(0.3, 1, 100_000),
        "lognormal": rng.lognormal(-3, 3, 100_000),
        "gamma": rng.gamma(0.3, 0.5, 100_000),
        "half zeros": np.maximum(rng.normal(0, 0.4, 100_000), 0),
    }[draw].astype(np.float32)
    found = counted(*map(torch.from_numpy, np.array_split(values, 7)))
    assert int(found.counts.sum()) == 100_000
    for fraction in (0.001, 0.05, 0.5, 0.85, 0.95, 0.999):
        want = np.quantile(values.astype(np.float64), fraction)
        assert quantile(found, fraction) == pytest.approx(want, rel=2**-15)


def test_float64_and_extreme_activations_are_counted():
    found = counted(torch.tensor([1e300, -1e300, 0.0, -0.0, 1e-300], dtype=torch.float64))
    assert found.counts.tolist() == [1, 3, 1]
    assert middle(found.bins)[1] == 0
    assert torch.isfinite(middle(found.bins)).all()
    with pytest.raises(ValueError, match="nothing was counted"):
        counted()


def test_weights_that_were_not_counted_are_told():
    with pytest.raises(Unavailable, match="without weights"):
        _ = counted(torch.ones(3)).summed_weights


def test_the_largest_numbers_have_an_edge():
    ends = torch.tensor([torch.finfo(torch.float32).max, torch.inf])
    assert lower_edge(nearest_edge(ends)).isfinite().all()

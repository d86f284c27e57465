"""Tests of the histogram of activations."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openood_adascale.features.histogram import (
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
def test_quantile_is_as_near_as_promised(values, fraction):
    got = quantile(counted(torch.from_numpy(values)), fraction)
    values = values.astype(np.float64)
    ends = [np.quantile(values, fraction, method=method) for method in ("lower", "higher")]
    # what NumPy and we round differently between the two
    slack = 1e-12 * np.abs(values).max() + 2.0**-126
    assert abs(got - np.quantile(values, fraction)) <= 2**-15 * np.abs(ends).max() + slack


def test_extreme_activations_are_counted():
    found = counted(torch.tensor([1e300, -1e300, 0.0, -0.0, 1e-300], dtype=torch.float64))
    assert found.counts.tolist() == [1, 3, 1]
    assert middle(found.bins)[1] == 0
    assert torch.isfinite(middle(found.bins)).all()
    with pytest.raises(ValueError, match="nothing was counted"):
        counted()


def test_largest_numbers_have_an_edge():
    ends = torch.tensor([torch.finfo(torch.float32).max, torch.inf])
    assert lower_edge(nearest_edge(ends)).isfinite().all()


def test_counts_and_weights_do_not_depend_on_batches():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole, split = Counter(), Counter()
    whole.add(values, values.double())
    for part in values.flip(0).tensor_split(7):
        split.add(part, part.double())
    one, other = whole.result(), split.result()
    assert torch.equal(one.bins, other.bins)
    assert torch.equal(one.counts, other.counts)
    assert int(one.counts.sum()) == len(values)
    torch.testing.assert_close(one.weights, other.weights)
    torch.testing.assert_close(one.weights.sum(), values.double().sum())

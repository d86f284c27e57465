"""Tests of the equations against a NumPy float64 reference."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from networks import activations
from scipy.special import logsumexp
from scipy.stats import ecdf

from openood_adascale import functional

inner_percentiles = st.floats(0.5, 99.5)


@given(activations(), inner_percentiles)
def test_scaling_factor_equals_reference(a, percentile):
    want = [reference.factor(row, percentile) for row in a.astype(np.float64)]
    np.testing.assert_allclose(
        functional.scaling_factor(torch.tensor(a), percentile).numpy(), want, rtol=1e-6
    )


@given(activations(), st.data())
def test_scaled_logits_and_energy_equal_reference(a, data):
    classes = data.draw(st.integers(1, 5))
    numbers = st.floats(-3, 3, width=32)
    weight = data.draw(hnp.arrays(np.float32, (classes, a.shape[1]), elements=numbers)).astype(np.float64)
    bias = data.draw(hnp.arrays(np.float32, (classes,), elements=numbers)).astype(np.float64)
    r = data.draw(hnp.arrays(np.float64, (len(a),), elements=st.floats(1, 60)))
    z = torch.tensor(a.astype(np.float64) @ weight.T + bias)
    scaled = {
        "A": functional.scale_activation_logits(z, torch.tensor(bias), torch.tensor(r)),
        "L": functional.scale_logits(z, torch.tensor(r)),
    }
    for variant, logits in scaled.items():
        rows = [
            reference.scaled_logits(row, weight, bias, factor, variant)
            for row, factor in zip(a.astype(np.float64), r, strict=True)
        ]
        # z − b can cancel: what is left of it is exact relative to the logits, not to itself
        tolerance = 1e-4 + 1e-9 * np.exp(r)[:, None] * np.abs(z.numpy()).max()
        assert np.all(np.abs(logits.numpy() - np.stack(rows)) <= tolerance + 1e-4 * np.abs(rows))
        np.testing.assert_allclose(
            functional.energy(logits).numpy(), logsumexp(logits.numpy(), axis=1), rtol=1e-12, atol=1e-12
        )


@given(
    hnp.arrays(np.float64, st.integers(1, 30), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])),
    hnp.arrays(np.float64, st.integers(1, 10), elements=st.floats(-1, 4)),
    st.tuples(inner_percentiles, inner_percentiles).map(sorted),
)
def test_cdf_and_percentile_equal_reference(reference_values, values, pair):
    cdf = functional.empirical_cdf(torch.tensor(np.sort(reference_values)), torch.tensor(values))
    np.testing.assert_allclose(cdf.numpy(), ecdf(reference_values).cdf.evaluate(values), rtol=1e-12)
    p = functional.adaptive_percentile(cdf, *pair).numpy()
    np.testing.assert_allclose(p, reference.percentile(reference_values, values, *pair), rtol=1e-12)
    assert np.all((p >= pair[0] - 1e-9) & (p <= pair[1] + 1e-9))


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 40)),
        elements=st.sampled_from([-2, -1, 0, 0.5, 1, 2]),
    ),
    st.floats(0.01, 1),
    st.sampled_from(["trivial", "salient", "all"]),
)
def test_direction_takes_first_of_tied_gradients(gradient, fraction, pixels):
    got = functional.perturbation_direction(torch.tensor(gradient), fraction, pixels).numpy()
    for row, direction in zip(gradient, got, strict=True):
        mask = reference.trivial_pixels(row, fraction, pixels)
        np.testing.assert_array_equal(direction, np.sign(row) * mask)


def test_direction_equals_reference_on_random_gradients():
    gradient = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    for pixels in ("trivial", "salient"):
        got = functional.perturbation_direction(torch.tensor(gradient), 0.05, pixels).numpy()
        for row, direction in zip(gradient, got, strict=True):
            np.testing.assert_array_equal(
                direction, np.sign(row) * reference.trivial_pixels(row, 0.05, pixels)
            )
            assert np.count_nonzero(direction) == int(3 * 8 * 8 * 0.05)


def test_random_direction_is_seeded_and_leaves_global_state_alone():
    state = torch.get_rng_state()
    first = functional.random_direction((3, 8, 8), 0.05, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, functional.random_direction((3, 8, 8), 0.05, 3))
    assert not torch.equal(first, functional.random_direction((3, 8, 8), 0.05, 4))
    assert first.abs().sum() == int(3 * 8 * 8 * 0.05)
    assert set(first.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_functions_take_no_images():
    none = torch.zeros(0, 64)
    assert functional.scaling_factor(none, 80.0).shape == (0,)
    assert functional.scaling_factor(none, torch.zeros(0)).shape == (0,)
    scaled = functional.scale_activation_logits(torch.zeros(0, 5), torch.zeros(5), torch.zeros(0))
    assert (scaled.shape, scaled.dtype) == ((0, 5), torch.float64)


def test_random_direction_ignores_default_device():
    """As where torch.set_default_device("cuda") was called."""
    want = functional.random_direction((3, 5, 7), 0.3, 11)
    with torch.device("meta"):
        assert torch.equal(functional.random_direction((3, 5, 7), 0.3, 11), want)


def test_counts_are_at_least_one():
    assert functional.leading_count(1, 50) == 1
    assert functional.leading_count(1, 1) == 1
    assert functional.leading_count(100, 50) == 50
    assert functional.pixel_count(0.001, 192) == 1
    counts = functional.kept_count(torch.tensor([99.99, 0.01, 50.0], dtype=torch.float64), 5)
    assert counts.tolist() == [1, 5, 3]  # 5·50/100 = 2.5 rounds half to even, to 2


def test_scaling_factor_is_one_without_positive_activations():
    a = torch.tensor([[-1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    assert functional.scaling_factor(a, 90.0).tolist() == [1.0, 1.0]


@given(
    st.lists(st.floats(1, 5000), min_size=2, max_size=8),
    st.sampled_from([0.5, 3.0, 1e4, -0.5, -3.0, 1e-12, -1e-12]),
)
def test_scores_are_finite_and_in_order_for_any_factor(factors, logit):
    """exp(r) passes float64's range at r = 709; a larger r must still give the larger magnitude."""
    r = torch.tensor(sorted(factors), dtype=torch.float64)
    z = torch.full((len(r), 1), logit)
    scores = functional.energy(functional.scale_activation_logits(z, torch.zeros(1), r))
    assert torch.isfinite(scores).all()
    steps = scores.diff()
    assert (steps >= 0).all() if logit > 0 else (steps <= 0).all()
    apart = r.diff() > 1e-9
    assert (steps[apart] != 0).all()


def test_zero_logits_stay_zero_for_any_factor():
    logits = functional.scale_activation_logits(
        torch.zeros(2, 3), torch.zeros(3), torch.tensor([800.0, 5000.0])
    )
    assert torch.equal(logits, torch.zeros(2, 3, dtype=torch.float64))


def test_overflow_keeps_the_order_between_rows_and_the_predicted_class():
    z = torch.tensor([[2.0, 1.0], [2.0, 1.0], [3.0, 1.0], [-2.0, -1.0]])
    r = torch.tensor([500.0, 800.0, 800.0, 900.0], dtype=torch.float64)
    logits = functional.scale_activation_logits(z, torch.zeros(2), r)
    scores = functional.energy(logits)
    assert torch.isfinite(scores).all()
    assert scores[3] < scores[0] < scores[1] < scores[2]
    assert logits.argmax(1).tolist() == [0, 0, 0, 1]


def test_extreme_row_changes_no_other_row():
    """One extreme row must not change the others."""
    z = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bias = torch.randn(4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    r = torch.linspace(1, 30, 20, dtype=torch.float64)
    alone = functional.scale_activation_logits(z, bias, r)
    extreme = functional.scale_activation_logits(
        torch.cat([z, z[:1]]), bias, torch.cat([r, torch.tensor([2000.0])])
    )
    torch.testing.assert_close(extreme[:20], alone, rtol=1e-9, atol=1e-9)


def test_direction_refuses_random_pixels():
    with pytest.raises(ValueError, match="'random'"):
        functional.perturbation_direction(torch.zeros(1, 3), 0.5, "random")


@pytest.mark.parametrize("factor", [60.0, 200.0, 690.0])
def test_logits_below_1e300_are_exact(factor):
    z, bias = torch.tensor([[1.0, -0.5, 0.25]], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    found = functional.scale_activation_logits(z, bias, torch.tensor([factor]))
    np.testing.assert_allclose(found.numpy(), z.numpy() * np.exp(factor), rtol=1e-12)

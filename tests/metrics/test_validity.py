"""Range of a second-order estimate, for perturbations with a known error."""

import math

import numpy as np
import pytest

from prunelit.metrics.validity import NEAR, measure_validity


def test_range_ends_where_the_error_passes_ten_percent() -> None:
    rng = np.random.default_rng(0)
    dz = np.exp(rng.uniform(-4, 1, size=6000))
    # The relative error is dz / 10 exactly: 10% at dz = 1.
    exact = dz**2 / 2
    found = measure_validity(dz, exact, exact * (1 + dz / 10))
    assert found.rank_correlation == pytest.approx(1)
    assert len(found.size) == 12
    np.testing.assert_allclose(found.error, found.size / 10, rtol=1e-3)
    last = np.nonzero(found.error < NEAR)[0][-1]
    # The upper edge of a bin, so it is between two medians.
    assert found.size[last] < found.holds_to < found.size[last + 1]
    assert found.holds_to == pytest.approx(1, rel=0.25)


def test_an_estimate_that_is_near_again_for_large_dz_does_not_hold_there() -> None:
    dz = np.linspace(0.1, 1.2, 120)
    estimate = np.where((dz > 0.5) & (dz < 0.8), 2.0, 1.0)
    found = measure_validity(dz, np.ones(120), estimate)
    assert 0.4 < found.holds_to < 0.55
    assert found.error[-1] == 0


def test_exact_estimates_hold_everywhere_and_bad_ones_nowhere() -> None:
    dz = np.linspace(0.1, 3, 40)
    assert measure_validity(dz, dz, dz).holds_to == 3
    nowhere = measure_validity(dz, dz, 2 * dz)
    assert nowhere.holds_to == 0
    assert nowhere.rank_correlation == pytest.approx(1)


def test_rank_correlation_is_of_ranks() -> None:
    exact = np.array([0.1, 0.2, 0.3, 0.4])
    estimate = np.array([1e-3, 5.0, 4.0, 1e6])
    # Two neighbours change places: 1 - 6 * 2 / (4 * 15).
    assert measure_validity(exact, exact, estimate).rank_correlation == pytest.approx(0.8)


def test_tokens_without_a_value_and_rounding_are_left_out() -> None:
    dz = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    exact = np.array([0.1, math.nan, math.inf, 1e-12, 0.3, 0.4])
    estimate = np.array([0.1, 0.2, 0.3, 5.0, 0.3, math.inf])
    found = measure_validity(dz, exact, estimate)
    assert found.dz.tolist() == [0.1, 0.5]
    assert found.exact.tolist() == found.estimate.tolist() == [0.1, 0.3]
    assert found.holds_to == 0.5
    assert math.isnan(found.rank_correlation)


def test_nothing_to_compare_gives_no_number() -> None:
    zero = np.zeros(20)
    found = measure_validity(zero, zero, zero)
    assert math.isnan(found.rank_correlation)
    assert math.isnan(found.holds_to)
    assert len(found.size) == len(found.error) == len(found.exact) == 0


def test_values_that_are_all_equal_have_no_ranks() -> None:
    found = measure_validity(np.arange(9.0), np.ones(9), np.ones(9))
    assert math.isnan(found.rank_correlation)
    assert found.holds_to == 8

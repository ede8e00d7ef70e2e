"""Retained scores by hand; the coverage of their bounds is in tests/report/test_score_test.py."""

import math

import numpy as np
import pytest

from prunelit.metrics.retained import estimate_retained


def test_value_is_the_ratio_of_leads_over_chance() -> None:
    dense, pruned = np.array([1.0, 1, 1, 0]), np.array([1.0, 0, 1, 0])
    assert estimate_retained(dense, pruned, np.full(4, 0.25)).value == pytest.approx(0.25 / 0.5)
    assert estimate_retained(dense, pruned, np.zeros(4)).value == pytest.approx(0.5 / 0.75)
    mixed = np.array([0.5, 0.25, 0.25, 0.5])
    assert estimate_retained(dense, pruned, mixed).value == pytest.approx(
        (0.5 - 0.375) / (0.75 - 0.375)
    )


def test_a_copy_retains_everything_and_a_doubt_is_left() -> None:
    scores = np.array([1.0, 1, 0] * 20)
    found = estimate_retained(scores, scores, np.full(60, 0.25))
    assert (found.value, found.standard_error) == (1, 0)
    assert 0.8 < found.low < 1 < found.high < 1.2


def test_chance_is_nothing_and_below_it_is_negative() -> None:
    dense = np.ones(8)
    assert estimate_retained(dense, np.array([1.0, 0] * 4), np.full(8, 0.5)).value == 0
    assert estimate_retained(dense, np.zeros(8), np.full(8, 0.5)).value == -1


def test_a_dense_model_without_a_lead_has_no_ratio() -> None:
    found = estimate_retained(np.array([0.0, 1, 0, 0]), np.zeros(4), np.full(4, 0.25))
    assert all(map(math.isnan, (found.value, found.low, found.high, found.standard_error)))


def test_a_lead_that_is_not_clear_of_chance_has_no_interval() -> None:
    dense = np.array([1.0, 0, 0, 0, 1, 0])
    found = estimate_retained(dense, dense, np.full(6, 0.25))
    assert found.value == 1
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_one_item_has_no_interval() -> None:
    found = estimate_retained(np.ones(1), np.ones(1), np.zeros(1))
    assert found.value == 1
    assert math.isnan(found.low)


def test_bounds_hold_pairs_of_scores_together() -> None:
    rng = np.random.default_rng(1)
    dense = (rng.random(150) < 0.8).astype(float)
    pruned = dense * (rng.random(150) < 0.75)
    chance = np.full(150, 0.25)
    paired = estimate_retained(dense, pruned, chance)
    unpaired = estimate_retained(dense, rng.permutation(pruned), chance)
    assert paired.high - paired.low < 0.9 * (unpaired.high - unpaired.low)


def test_the_standard_error_is_that_of_the_ratio() -> None:
    rng = np.random.default_rng(2)
    dense = (rng.random(400) < 0.8).astype(float)
    pruned, chance = dense * (rng.random(400) < 0.75), np.zeros(400)
    found = estimate_retained(dense, pruned, chance)
    drawn = [
        float(pruned[own].mean() / dense[own].mean())
        for own in (rng.integers(400, size=400) for _ in range(500))
    ]
    assert found.standard_error == pytest.approx(np.std(drawn), rel=0.15)
    # With many items the bounds are 1.645 standard errors away.
    for distance in (found.value - found.low, found.high - found.value):
        assert distance == pytest.approx(1.645 * found.standard_error, rel=0.1)

"""Retained scores by hand, and the coverage of their interval."""

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


def test_a_copy_retains_everything_without_any_doubt() -> None:
    scores = np.random.default_rng(0).integers(0, 2, 50).astype(float)
    found = estimate_retained(scores, scores, np.full(50, 0.25))
    assert (found.value, found.low, found.high, found.standard_error) == (1, 1, 1, 0)


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


def test_the_interval_covers_the_truth_and_pairs_the_models() -> None:
    rng = np.random.default_rng(1)
    chance, covered, widths = np.full(150, 0.25), 0, []
    for trial in range(120):
        dense = (rng.random(150) < 0.8).astype(float)
        pruned = dense * (rng.random(150) < 0.75)  # the truth: (0.6 - 0.25) / (0.8 - 0.25)
        found = estimate_retained(dense, pruned, chance, seed=trial)
        covered += found.low <= 0.35 / 0.55 <= found.high
        alone = estimate_retained(dense, rng.permutation(pruned), chance, seed=trial)
        widths.append((found.high - found.low, alone.high - alone.low))
    assert 107 <= covered <= 120  # 114 expected, standard deviation 2.4
    paired, unpaired = np.mean(widths, axis=0)
    assert paired < 0.9 * unpaired


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(2)
    dense, pruned = rng.random(40), rng.random(40)
    zero = np.zeros(40)
    assert estimate_retained(dense, pruned, zero) == estimate_retained(dense, pruned, zero)
    assert estimate_retained(dense, pruned, zero) != estimate_retained(dense, pruned, zero, seed=1)

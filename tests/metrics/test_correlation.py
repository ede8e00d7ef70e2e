"""Spearman's correlation and its jackknife, compared with definitions and random samples."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, rankdata

from prunelit.metrics.correlation import GROUPS, jackknife_error, spearman


def drawn(rng: np.random.Generator, n: int, r: float) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=n)
    return x, r * x + np.sqrt(1 - r**2) * rng.normal(size=n)


def test_it_is_pearson_of_mean_ranks() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, size=40), rng.normal(size=40)
    value, without = spearman(torch.tensor(x), torch.tensor(y))
    assert value == pytest.approx(pearsonr(rankdata(x), rankdata(y)).statistic, rel=1e-12)
    expected = [
        pearsonr(rankdata(np.delete(x, i)), rankdata(np.delete(y, i))).statistic for i in range(40)
    ]
    np.testing.assert_allclose(np.sort(without.numpy()), np.sort(expected), rtol=1e-10)


# Groups of one item, and of about four.
@pytest.mark.parametrize("n", [100, pytest.param(1000, marks=pytest.mark.full)])
def test_the_error_is_the_spread_over_samples(n: int) -> None:
    rng = np.random.default_rng(1)
    values, errors = [], []
    for _ in range(60):
        value, without = spearman(*map(torch.tensor, drawn(rng, n, 0.6)))
        assert len(without) == min(n, GROUPS)
        values.append(value)
        errors.append(jackknife_error(without))
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.25)


def test_groups_are_the_same_for_two_models_and_in_any_order() -> None:
    rng = np.random.default_rng(2)
    x, y = drawn(rng, 1000, 0.7)
    near = x + 0.05 * rng.normal(size=1000)
    one, other = (spearman(torch.tensor(v), torch.tensor(y))[1] for v in (x, near))
    # The common part of both cancels.
    assert jackknife_error(one - other) < jackknife_error(one) / 3
    # Sorted items: groups of every n-th item would be strata, with too small a spread.
    order = np.argsort(y)
    _, ordered = spearman(torch.tensor(x[order]), torch.tensor(y[order]))
    assert jackknife_error(ordered) == pytest.approx(jackknife_error(one), rel=0.3)

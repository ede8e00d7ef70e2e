import itertools

import numpy as np
import pytest
import torch

from prunelit.pruners import permutation
from prunelit.pruners.permutation import find_order, kept_sum


def kept(scores: np.ndarray, keep: int) -> float:
    """Sum of what stays, one group of 4 after another."""
    parts = np.split(scores, scores.shape[1] // 4, axis=1)
    return sum(float(np.sort(part, axis=1)[:, -keep:].sum()) for part in parts)


def best(scores: np.ndarray, keep: int) -> float:
    """Every way to split 8 channels into two groups."""
    halves = itertools.combinations(range(8), 4)
    return max(kept(scores[:, [*half, *(set(range(8)) - set(half))]], keep) for half in halves)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_an_order_is_near_the_best(keep: int) -> None:
    """The gain over the stored order, as a share of the highest gain of any order."""
    gains, bests = 0.0, 0.0
    for seed in range(50):
        scores = np.random.default_rng(seed).exponential(size=(5, 8)) ** 2
        order = find_order(torch.from_numpy(scores), keep, 4).numpy()
        assert sorted(order) == list(range(8))
        found, present = kept(scores[:, order], keep), kept(scores, keep)
        assert found > present - 1e-9
        assert kept_sum(torch.from_numpy(scores), keep, 4) == pytest.approx(present)
        gains, bests = gains + found - present, bests + best(scores, keep) - present
    assert 0.84 < gains / bests <= 1


def test_parts_give_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.rand(6, 40, generator=torch.Generator().manual_seed(0))
    whole = find_order(scores, 2, 4)
    monkeypatch.setattr(permutation, "_ENTRIES", 130)  # two groups at a time
    assert find_order(scores, 2, 4).equal(whole)
    assert kept_sum(scores[:, whole], 2, 4) > 1.02 * kept_sum(scores, 2, 4)
    alike = torch.ones(3, 8)
    assert find_order(alike, 2, 4).equal(torch.arange(8))

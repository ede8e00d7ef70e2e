from math import comb

import pytest
import torch

from prunelit.metrics.flips import FLIPS, answer_flips, mcnemar


def test_every_way_to_answer() -> None:
    label = torch.tensor([0, 0, 0, 0, 0])
    dense = torch.tensor([0, 0, 1, 1, 1])
    pruned = torch.tensor([0, 1, 0, 1, 2])
    found = answer_flips(dense, pruned, label)
    assert tuple(found) == FLIPS
    assert found["agreement"].tolist() == [1, 0, 0, 1, 0]
    assert found["flips_to_wrong"].tolist() == [0, 1, 0, 0, 0]
    assert found["flips_to_right"].tolist() == [0, 0, 1, 0, 0]
    assert all(value.dtype == torch.float64 for value in found.values())


def brute_force(to_wrong: int, to_right: int) -> float:
    """Probability of a split that is at least as unlikely, if both flips are equally frequent."""
    n = to_wrong + to_right
    chances = [comb(n, k) / 2**n for k in range(n + 1)]
    return sum(chance for chance in chances if chance <= chances[to_wrong] * (1 + 1e-9))


@pytest.mark.parametrize(
    ("to_wrong", "to_right"), [(0, 1), (3, 3), (10, 2), (2, 10), (0, 12), (40, 21)]
)
def test_mcnemar_is_the_exact_test(to_wrong: int, to_right: int) -> None:
    assert mcnemar(to_wrong, to_right) == pytest.approx(brute_force(to_wrong, to_right))


def test_nothing_flips() -> None:
    assert mcnemar(0, 0) == 1

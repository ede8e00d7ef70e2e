"""The choice of one option of each group, against all choices."""

import itertools
import random

import pytest

from prunelit.pruners.knapsack import Option, choose_options


@pytest.mark.parametrize("seed", range(40))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    draw = random.Random(seed)
    groups = [
        [
            Option(draw.randrange(12), draw.randrange(20) / 4, draw.random() < 0.3)
            for _ in range(draw.randrange(1, 5))
        ]
        for _ in range(5)
    ]
    most, limit = draw.randrange(10, 45), draw.randrange(3)
    sums = [
        (sum(one.cost for one in own), -sum(one.size for one in own))
        for own in itertools.product(*groups)
        if sum(one.size for one in own) <= most and sum(one.limited for one in own) <= limit
    ]
    found = choose_options(groups, most, limit)
    if not sums:
        assert found is None
        return
    assert found is not None
    chosen = [group[place] for group, place in zip(groups, found[0], strict=True)]
    assert found[1] == min(sums)[0] == sum(one.cost for one in chosen)
    assert sum(one.size for one in chosen) <= most
    assert sum(one.limited for one in chosen) <= limit


def test_many_blocks_are_chosen_in_little_time() -> None:
    draw = random.Random(0)
    sizes = [(1000 - 83 * heads - 94 * neurons) for heads in range(2) for neurons in range(5)]
    groups = [
        [*(Option(size, draw.random()) for size in sizes), Option(0, draw.random(), limited=True)]
        for _ in range(48)
    ]
    found = choose_options(groups, 32_000, 12)
    assert found is not None
    assert sum(group[i].size for group, i in zip(groups, found[0], strict=True)) <= 32_000

"""The choice of a model, against all models that the options allow."""

import itertools
import random

import pytest

from prunelit.pruners.model_choice import Choice, choose_model
from prunelit.pruners.part_sizes import Sizes

HEADS, NEURONS, EXPERTS = [0, 7, 15], [0, 11], [0, 5, 9]
BOTH = [[0, 0, 0], [0, 2, 3]]  # what fewer neurons and fewer experts would both take


def _size(block: int, heads: int, neurons: int, experts: int) -> int:
    gone = HEADS[heads] + NEURONS[neurons] + EXPERTS[experts] - BOTH[neurons][experts]
    return block - gone


def _all(
    costs: list[list[float]], outside: int, most: int, uniform: bool
) -> list[tuple[tuple[tuple[int, int] | None, ...], int, int, float]]:
    """List every model: options of its blocks, option of experts, parameters and cost."""
    one: list[tuple[int, int] | None] = [*itertools.product(range(3), range(2)), None]
    found = []
    for own in itertools.product(one, repeat=len(costs)):
        kept = [options for options in own if options is not None]
        if len(own) - len(kept) > most or (uniform and len(set(kept)) > 1):
            continue
        for experts in range(3):
            size, cost = outside, 0.0
            for options, block in zip(own, costs, strict=True):
                if options is None:
                    cost += block[-1]
                    continue
                size += _size(60, *options, experts)
                places = (options[0], 2 + options[1], 3 + experts)
                for place, first in zip(places, (0, 2, 3), strict=True):
                    cost += block[place - 1] if place > first else 0.0
            found.append((own, experts, size, cost))
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("uniform", [True, False])
def test_the_choice_is_the_best_of_all_models(seed: int, uniform: bool) -> None:
    draw = random.Random(seed)
    most = draw.randrange(3)
    # Two options of heads, one of neurons, two of experts, and no block.
    costs = [[draw.randrange(1, 30) / 4 for _ in range(5 + bool(most))] for _ in range(3)]
    room = draw.randrange(90, 200)
    sizes = Sizes(20, 60, HEADS, NEURONS, room, experts=EXPERTS, both=BOTH)
    fitting = [own for own in _all(costs, 20, most, uniform) if own[2] <= room]
    if not fitting:
        with pytest.raises(ValueError, match="empty"):
            choose_model(costs, sizes, sizes, most, uniform=uniform)
        return
    cost, left = min((own[3], -own[2]) for own in fitting)
    chosen = choose_model(costs, sizes, sizes, most, uniform=uniform)
    assert (chosen.kl, -chosen.parameters) == (cost, left)
    assert chosen.size == chosen.parameters
    assert (chosen.options, chosen.experts, -left, cost) in fitting


def test_what_fits_and_what_is_counted_differ() -> None:
    """Times must fit: heads take most of them, neurons most of the parameters."""
    times = Sizes(0, 10, [0, 6], [0, 1], 14)
    counts = Sizes(100, 1000, [0, 50], [0, 700], 0)
    costs = [[0.5, 0.1, 9.0], [0.25, 0.1, 9.0]]
    chosen = choose_model(costs, times, counts, 0, uniform=False)
    assert chosen == Choice(((0, 0), (1, 0)), 2050, 0.25, 14)

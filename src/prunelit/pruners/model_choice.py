"""The model that fits and costs least, of all that the measured options of blocks allow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prunelit.pruners.knapsack import Option, choose_options
from prunelit.pruners.part_sizes import Sizes


@dataclass(frozen=True)
class Choice:
    """One way to make a model smaller.

    Args:
        options: of each block, the places among the options of heads and of neurons, of which 0
            removes none; None if the block goes.
        parameters: number of parameters that are left.
        kl: sum of what the changes of all blocks cost alone, nats.
        size: in the unit of the target.
        experts: place among the options of experts, the same in every block; 0 removes none.
    """

    options: tuple[tuple[int, int] | None, ...]
    parameters: int
    kl: float
    size: int
    experts: int = 0


def choose_model(
    costs: Sequence[Sequence[float]], sizes: Sizes, counts: Sizes, most: int, *, uniform: bool
) -> Choice:
    """Find the model that fits and costs least; of equal ones, the one with more parameters.

    What fewer heads, fewer neurons and fewer experts of a block cost alone is added up.

    Args:
        costs: of each block, what each option costs alone, nats: those of heads, of neurons, of
            experts, then of no block if blocks may go. The option that removes nothing is not
            among them.
        sizes: those that must fit.
        counts: numbers of parameters.
        most: the largest number of blocks to drop.
        uniform: leave the same number of heads and of neurons in every block.

    Raises:
        ValueError: if no model fits.
    """
    found = []
    for experts, items in _menus(sizes, uniform):
        parameters = {own[:2]: own[2] for own in counts.menu(experts)}
        groups = [
            [
                *(Option(size, _cost(own, counts, (h, n, experts))) for h, n, size in items),
                *([Option(0, own[-1], limited=True)] if most else []),
            ]
            for own in costs
        ]
        if (best := choose_options(groups, sizes.most - sizes.outside, most)) is not None:
            picked, kl = best
            options = [items[place][:2] if place < len(items) else None for place in picked]
            size = sum(group[i].size for group, i in zip(groups, picked, strict=True))
            left = sum(0 if own is None else parameters[own] for own in options)
            found.append(
                Choice(tuple(options), counts.outside + left, kl, sizes.outside + size, experts)
            )
    return min(found, key=lambda one: (one.kl, -one.parameters))


def _menus(sizes: Sizes, uniform: bool) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """Give an option of experts, and the options among which each block may choose with it."""
    for experts in range(len(sizes.experts)):
        menu = list(sizes.menu(experts))
        for items in [[item] for item in menu] if uniform else [menu]:
            yield experts, items


def _cost(changes: Sequence[float], counts: Sizes, places: tuple[int, int, int]) -> float:
    """Add up what the options of a block cost; `places` are those of heads, neurons, experts."""
    cost, first = 0.0, 0
    for place, options in zip(places, (counts.heads, counts.neurons, counts.experts), strict=True):
        cost += changes[first + place - 1] if place else 0.0
        first += len(options) - 1
    return cost

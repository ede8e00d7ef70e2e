"""Choose one option of each group, so that the sum of sizes fits and the sum of costs is least."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Option:
    """One of several things that a group may have.

    Args:
        size: what it adds to the sum of sizes.
        cost: what it adds to the sum of costs.
        limited: it is one of those of which there may be only some in all groups together.
    """

    size: int
    cost: float
    limited: bool = False


def _falls(counts: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Mark costs that are below all earlier ones of the same count, (N,) bool; counts ascend."""
    kept = np.zeros(len(costs), bool)
    for own in np.split(np.arange(len(costs)), np.flatnonzero(np.diff(counts)) + 1):
        lowest = np.minimum.accumulate(costs[own])
        kept[own] = costs[own] < np.concatenate([[np.inf], lowest])[: len(own)]
    return kept


def choose_options(
    groups: Sequence[Sequence[Option]], most: int, limit: int
) -> tuple[list[int], float] | None:
    """Choose one option of each group with the least sum of costs; of equal ones the largest.

    The choice is exact. Group after group, all sums of sizes are kept for which no smaller sum
    costs as little (Nemhauser and Ullmann 1969, Management Science 15(9)). There are few, since
    blocks of one kind have equal sizes.

    Args:
        groups: options of each group.
        most: the largest sum of sizes.
        limit: the largest number of limited options.

    Returns:
        The index of the option of each group, and the sum of costs; None if nothing fits.
    """
    least = [min(option.size for option in group) for group in groups]
    sizes, costs = np.zeros(1, np.int64), np.zeros(1)
    counts = np.zeros(1, np.int64)  # of limited options
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for number, group in enumerate(groups):
        new_sizes = np.add.outer(sizes, [option.size for option in group]).ravel()
        new_costs = np.add.outer(costs, [option.cost for option in group]).ravel()
        new_counts = np.add.outer(counts, [int(option.limited) for option in group]).ravel()
        able = (new_sizes + sum(least[number + 1 :]) <= most) & (new_counts <= limit)
        order = np.lexsort((new_costs, new_sizes, new_counts))
        order = order[able[order]]
        order = order[_falls(new_counts[order], new_costs[order])]
        sizes, costs, counts = new_sizes[order], new_costs[order], new_counts[order]
        steps.append((order // len(group), order % len(group)))
    if not len(sizes):
        return None
    last = place = int(np.lexsort((-sizes, costs))[0])
    picked = []
    for parents, options in reversed(steps):
        picked.append(int(options[place]))
        place = int(parents[place])
    return picked[::-1], float(costs[last])

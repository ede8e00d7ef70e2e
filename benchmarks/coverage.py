"""Simulate how often the bounds of a retained share cover the truth, and how often n items decide.

    python benchmarks/coverage.py [--draws 2000] [--cells 1]

Paired scores are drawn on a grid: right or wrong answers that are correlated by a Gaussian copula,
and graded scores (the reciprocal of a rank); n from 30 to 1000, floors 0, 0.25 and 0.5, dense
scores from 0.05 to 0.99, true shares from 0.1 to 1.05. Each one-sided 95% bound should cover at
least 93% of the draws in every cell. `--cells 20` takes every
20th cell. Then n items are foretold to decide with 80% power, and it is counted how often they do.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import track
from scipy.special import ndtri

from prunelit.report.score_test import LEVEL, PairedScores, ScoreTest, critical_value

ITEMS = (30, 50, 100, 216, 1000)
FLOORS = (0.0, 0.25, 0.5)
DENSE = (0.05, 0.1, 0.3, 0.6, 0.9, 0.99)
SHARES = (0.1, 0.5, 0.8, 0.9, 0.95, 1.0, 1.05)
CORRELATIONS = (0.3, 0.8, 0.95)
RIGHT_OR_WRONG = np.array([0.0, 1.0])
RECIPROCAL_RANKS = 1 / np.arange(20.0, 0, -1)


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Args:
        n: number of items.
        floor: score of each item without the model.
        dense: expected score of the dense model.
        share: share of its lead that the pruned model keeps.
        correlation: of the normal variables behind the scores.
        graded: reciprocal ranks instead of right and wrong.
    """

    n: int
    floor: float
    dense: float
    share: float
    correlation: float
    graded: bool = False

    @property
    def values(self) -> np.ndarray:
        """The scores that an item can have, rising."""
        return RECIPROCAL_RANKS if self.graded else RIGHT_OR_WRONG

    def chances(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of each score for both models."""
        pruned = self.floor + self.share * (self.dense - self.floor)
        own = (chances(self.values, mean) for mean in (self.dense, min(0.995, max(0.005, pruned))))
        dense, pruned_chances = own
        return dense, pruned_chances

    def true_share(self) -> float:
        """Return the share of the lead that is kept by the expected scores."""
        dense, pruned = (float(own @ self.values) - self.floor for own in self.chances())
        return pruned / dense

    def draw(self, rng: np.random.Generator, draws: int, n: int | None = None) -> np.ndarray:
        """Draw how often each pair of scores occurs, (draws, values of dense x of pruned)."""
        n = n or self.n
        normal = rng.standard_normal((2, draws, n))
        normal[1] *= math.sqrt(1 - self.correlation**2)
        normal[1] += self.correlation * normal[0]
        size = len(self.values)
        dense, pruned = (
            np.searchsorted(ndtri(own.cumsum()[:-1]), column)
            for own, column in zip(self.chances(), normal, strict=True)
        )
        places = dense * size + pruned + size**2 * np.arange(draws)[:, None]
        return np.bincount(places.ravel(), minlength=draws * size**2).reshape(draws, -1)

    def test(self, counts: np.ndarray) -> ScoreTest:
        """Return the test of one draw."""
        dense, pruned = (
            np.repeat(side.ravel(), counts)
            for side in np.meshgrid(self.values, self.values, indexing="ij")
        )
        return ScoreTest(PairedScores(dense, pruned, np.full(len(dense), self.floor)))


def chances(values: np.ndarray, mean: float) -> np.ndarray:
    """Return probabilities of the values with a mean: geometric in their order."""
    low, high, own = -50.0, 50.0, values
    for _ in range(100):
        slope = (low + high) / 2
        weights = np.exp(slope * np.arange(len(values)) - max(0, slope * (len(values) - 1)))
        own = weights / weights.sum()
        low, high = (slope, high) if own @ values < mean else (low, slope)
    return own


def grid(graded: bool) -> Iterator[Cell]:
    """Yield the cells in which the dense model is above its floor."""
    for values in itertools.product(ITEMS, FLOORS, DENSE, SHARES, CORRELATIONS):
        cell = Cell(*values, graded)
        pruned = cell.floor + cell.share * (cell.dense - cell.floor)
        if cell.dense > cell.floor and (not graded or min(cell.dense, pruned) > cell.values[0]):
            yield cell


def coverage(cell: Cell, rng: np.random.Generator, draws: int) -> tuple[float, float]:
    """Return how often the lower and the upper bound of the share cover the truth."""
    share, critical = cell.true_share(), critical_value(LEVEL)
    counts, times = np.unique(cell.draw(rng, draws), axis=0, return_counts=True)
    z = np.array([cell.test(one).share_z(share) for one in counts])
    return float(times[z <= critical].sum() / draws), float(times[z >= -critical].sum() / draws)


def deciding_share(cell: Cell, keep: float, rng: np.random.Generator, draws: int) -> float | None:
    """Foretell the number of items from the true rates, and return how often they decide.

    It is None if the number is above 2,000 or if an item settles the question.
    """
    truth = cell.draw(rng, 1, 200_000)[0]
    needed = cell.test(truth).items_for_share(keep)
    if needed is None or not 5 < needed <= 2000:
        return None
    counts, times = np.unique(cell.draw(rng, draws, needed), axis=0, return_counts=True)
    z = np.array([cell.test(one).share_z(keep) for one in counts])
    side = 1 if cell.true_share() > keep else -1
    return float(times[side * z >= critical_value(LEVEL)].sum() / draws)


def describe(name: str, shares: Sequence[float], cells: Sequence[Cell], least: float) -> str:
    """Describe the coverage of one bound over all cells."""
    worst = int(np.argmin(shares))
    below = sum(share < least for share in shares)
    return (
        f"{name} bound: {below} of {len(shares)} cells below {least:.1%}, worst "
        f"{shares[worst]:.1%} at {cells[worst]}; {sum(s > 0.98 for s in shares)} above 98%"
    )


def main() -> None:
    """Run the simulation and print a summary."""
    parser = argparse.ArgumentParser(description="Simulate the bounds of a retained share.")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--cells", type=int, default=1, help="take every so manieth cell")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    for graded in (False, True):
        cells = list(grid(graded))[:: arguments.cells]
        name = "graded" if graded else "right or wrong"
        found = [coverage(cell, rng, arguments.draws) for cell in track(cells, name)]
        for side, shares in zip(("lower", "upper"), zip(*found, strict=True), strict=True):
            print(describe(f"{name}, {side}", shares, cells, 0.93))
    decided = [
        share
        for cell in track(cells, "items foretold")
        if (share := deciding_share(cell, 0.95, rng, 500)) is not None
    ]
    print(
        f"items foretold decide in {np.median(decided):.0%} of the draws (median of {len(decided)} "
        f"cells, {np.quantile(decided, 0.05):.0%} to {np.quantile(decided, 0.95):.0%} in 90% of "
        "them; 80% is meant)"
    )


if __name__ == "__main__":
    main()

"""Test from paired scores how much of the dense model's lead is left, and give its bounds.

The percentile bootstrap and the t test fail where events are rare: the pruned model is right once
in fifty items, or nothing flips. The score test uses the variance under the null hypothesis, so its
bounds cover there too; `benchmarks/coverage.py` simulates it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri, stdtr  # `scipy.stats` takes a second to import

LEVEL = 0.05  # of a one-sided test
POWER = 0.8
MOST_ITEMS = 100_000
_PSEUDO = 0.5  # items at each corner
_EQUAL = 1e-18  # variance of pseudo-values that differ by the rounding of numbers alone
_STEPS = 50  # of a bisection: 1e-15 of the bracket
_STEEP = math.pi / 2 - 1e-9  # angle of a share of a billion


@dataclass(frozen=True)
class PairedScores:
    """Scores of the same items by both models.

    Args:
        dense: (n,), score of each item by the dense model.
        pruned: (n,), score of each item by the pruned model.
        floor: (n,), score of each item without the model: that of random guessing, or of the most
            frequent answer.
        bounded: True for scores in [0, 1]. False for pseudo-values of a jackknife, which stand for
            a score that is no mean of items, such as a correlation. These get a t test.
        weights: (n,), with the mean 1, of each item; None weighs all alike. Those of balanced
            accuracy are inverse to the number of items with the same right answer.
    """

    dense: np.ndarray
    pruned: np.ndarray
    floor: np.ndarray
    bounded: bool = True
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.dense)

    def defined(self) -> "PairedScores":
        """Give the floor to a score that is not defined, such as the correlation of equal numbers.

        A model whose score is not defined is worth no more than none.
        """
        dense, pruned = (
            np.where(np.isnan(own), self.floor, own) for own in (self.dense, self.pruned)
        )
        return replace(self, dense=dense, pruned=pruned)

    def weighted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return dense, pruned and floor of each item times its weight; their means are scores."""
        columns = self.dense, self.pruned, self.floor
        if self.weights is not None:
            columns = tuple(column * self.weights for column in columns)
        dense, pruned, floor = columns
        return dense, pruned, floor


class ScoreTest:
    """A one-sided test of contrasts of paired scores, and its bounds.

    The contrast of an item is linear in its scores, so a ratio with an unstable denominator never
    occurs. For the share of the lead it is ``v = (pruned - floor) - share (dense - floor)``. For
    an absolute loss it is ``v = pruned - dense + loss``. The model keeps the share, or loses no
    more, if the mean of v is not below 0.

    Half a pseudo-item is added at each corner of (dense, pruned) in {0, 1} x {0, 1}; where items
    have weights, with the largest one. The empirical weights w are tilted to the null hypothesis,
    and give its variance.

    Formula:
        ``z = mean(v) / sqrt(sum q v^2 / n)``, with ``q ~ w / (1 + lambda v)`` and lambda such that
        ``sum q v = 0``; mean and n are of the items alone.

    Source:
        The tilted weights are those of empirical likelihood: Owen 1988, Empirical likelihood ratio
        confidence intervals for a single functional. The contrast is that of Fieller 1954, Some
        problems in interval estimation. Half a pseudo-item is the prior of Jeffreys.

    Args:
        scores: of both models.

    Example:
        >>> import numpy as np
        >>> from prunelit.report.score_test import PairedScores, ScoreTest
        >>> dense = np.ones(40)  # 40 items without a flip
        >>> test = ScoreTest(PairedScores(dense, dense, floor=np.full(40, 0.25)))
        >>> low, high = test.share_bounds(keep=0.95)
        >>> low < 1 < high
        True
    """

    def __init__(self, scores: PairedScores) -> None:
        columns = np.stack(scores.weighted()).astype(np.float64)
        self._corner = 1.0 if scores.weights is None else float(scores.weights.max())
        # Equal items are counted: right and wrong answers leave four lines.
        values, self._counts = np.unique(columns, axis=1, return_counts=True)
        self._dense, self._pruned, self._floor = values
        self._level = float(columns[2].mean())  # the mean floor
        self._bounded = scores.bounded
        self.n = len(scores)

    def lead_z(self) -> float:
        """Return z of the hypothesis that the dense model is not above its floor."""
        return self._z(*self._lead(-math.pi / 2))

    def share_z(self, keep: float) -> float:
        """Return z of the hypothesis that the pruned model keeps the share `keep` of the lead."""
        return self._z(*self._lead(math.atan(keep)))

    def loss_z(self, loss: float) -> float:
        """Return z of the hypothesis that the pruned model's score is lower by `loss`."""
        return self._z(*self._difference(-loss))

    def share_bounds(self, keep: float, level: float = LEVEL) -> tuple[float, float]:
        """Return the one-sided bounds of the share: all shares between them are not rejected.

        Args:
            keep: a share. The bounds agree with the test of this share.
            level: of each bound; 0.05 gives two bounds of 95%.

        Returns:
            Lower and upper bound, infinite if no share is rejected on this side. This happens if
            the dense model has no lead at this level.
        """
        ends = -math.pi / 2, math.pi / 2
        angles = self._bounds(self._lead, math.atan(keep), ends, level)
        low, high = (
            math.copysign(math.inf, angle) if abs(angle) > _STEEP else math.tan(angle)
            for angle in angles
        )
        return low, high

    def difference_bounds(self, loss: float, level: float = LEVEL) -> tuple[float, float]:
        """Return the one-sided bounds of pruned minus dense; they agree with `loss_z(loss)`."""
        ends = -1.0, 1.0
        if not self._bounded:
            size = float(np.abs(self._pruned - self._dense).max())
            ends = -size - 1, size + 1
        return self._bounds(self._difference, -loss, ends, level)

    def items_for_share(self, keep: float, level: float = LEVEL) -> int | None:
        """Return the number of items that decides with 80% power if the observed effect is true.

        Args:
            keep: the share that is tested.
            level: of the test.

        Returns:
            The number of items; None if it is above 100,000.
        """
        return self._items(*self._lead(math.atan(keep)), level)

    def items_for_loss(self, loss: float, level: float = LEVEL) -> int | None:
        """Return the number of items for an absolute loss, see `items_for_share`."""
        return self._items(*self._difference(-loss), level)

    def _lead(self, angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Return contrasts of items and corners for the share tan(angle).

        A contrast is scaled by the cosine, so that both ends, a share of minus and plus infinity,
        are the lead of the dense model and its negative.
        """
        own = math.cos(angle) if abs(angle) < math.pi / 2 else 0.0  # the cosine there is 6e-17
        lead = math.sin(angle)
        items = own * (self._pruned - self._floor) - lead * (self._dense - self._floor)
        corners = [
            own * (pruned - self._level) - lead * (dense - self._level)
            for dense in (0, 1)
            for pruned in (0, 1)
        ]
        return items, self._corner * np.array(corners)

    def _difference(self, difference: float) -> tuple[np.ndarray, np.ndarray]:
        items = self._pruned - self._dense - difference
        return items, self._corner * (np.array([0.0, 1.0, -1.0, 0.0]) - difference)

    def _z(self, items: np.ndarray, corners: np.ndarray) -> float:
        mean = float(self._counts @ items) / self.n
        if not self._bounded:
            if self.n == 1:
                return 0.0
            error = math.sqrt(self._spread(items, corners, mean) / (self.n - 1) / self.n)
            return _as_z(mean / error, self.n - 1)
        variance = _null_variance(*self._weights(items, corners, self.n))
        if variance == 0:  # no item and no corner is on the other side
            return math.copysign(math.inf, mean) if mean else 0.0
        return mean / math.sqrt(variance / self.n)

    def _spread(self, items: np.ndarray, corners: np.ndarray, mean: float) -> float:
        """Sum the squares of the pseudo-values around their mean.

        Equal pseudo-values, such as those of texts in the right order, say nothing about their
        error: then half a pseudo-item at each corner does.
        """
        spread = float(self._counts @ (items - mean) ** 2)
        equal = spread <= _EQUAL * self.n
        return spread + _PSEUDO * float(((corners - mean) ** 2).sum()) if equal else spread

    def _weights(
        self, items: np.ndarray, corners: np.ndarray, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return values and weights of the items, as if there were n of them, and the corners."""
        counts = [self._counts * (n / self.n), np.full(len(corners), _PSEUDO)]
        weights = np.concatenate(counts)
        return np.concatenate([items, corners]), weights / weights.sum()

    def _bounds(
        self,
        contrast: Callable[[float], tuple[np.ndarray, np.ndarray]],
        tested: float,
        ends: tuple[float, float],
        level: float,
    ) -> tuple[float, float]:
        critical = critical_value(level)

        def z(place: float) -> float:
            return self._z(*contrast(place))

        own = z(tested)
        low = (tested, ends[1]) if own >= critical else (ends[0], tested)
        high = (ends[0], tested) if own <= -critical else (tested, ends[1])
        return (
            _bisect(lambda place: z(place) >= critical, *low)[0],
            _bisect(lambda place: z(place) > -critical, *high)[1],
        )

    def _items(self, items: np.ndarray, corners: np.ndarray, level: float) -> int | None:
        mean = float(self._counts @ items) / self.n
        critical, power = critical_value(level), float(ndtri(POWER))

        def decides(n: int) -> bool:
            if self._bounded:
                values, weights = self._weights(items, corners, n)
                null = _null_variance(values, weights)
                own = float(weights @ (values - weights @ values) ** 2)
            else:
                null = own = self._spread(items, corners, mean) / self.n
            return abs(mean) * math.sqrt(n) >= critical * math.sqrt(null) + power * math.sqrt(own)

        if not decides(MOST_ITEMS):
            return None
        low, high = 1, MOST_ITEMS
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if decides(middle) else (middle + 1, high)
        return low


def _null_variance(values: np.ndarray, weights: np.ndarray) -> float:
    """Tilt the weights so that the mean of the values is 0, and return the variance.

    It is 0 if all values are on one side, so that no weights have this mean.
    """
    least, most = float(values.min()), float(values.max())
    if least >= 0 or most <= 0:
        return 0.0
    shrink = 1 - 1e-12  # the ends themselves divide by zero
    low, high = -shrink / most, -shrink / least
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if (weights @ (values / (1 + middle * values))) > 0:
            low = middle
        else:
            high = middle
    tilted = weights / (1 + (low + high) / 2 * values)
    return float(tilted @ values**2 / tilted.sum())


def _bisect(left: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Find the place where `left` turns from True to False; return the last bracket."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) else (low, middle)
    return low, high


def critical_value(level: float) -> float:
    """Return the z above which a one-sided test of this level rejects."""
    return -float(ndtri(level))


def _as_z(t: float, freedom: int) -> float:
    """Return the normal quantile with the same p-value as a value of Student's t."""
    return math.copysign(-float(ndtri(stdtr(freedom, -abs(t)))), t)

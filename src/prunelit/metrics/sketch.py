"""Streaming statistics with bounded memory, which merge exactly across ranks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import InputError, check_whole
from prunelit.report.quantities import unchanged_value

# Bins of the histogram. Each reaches from its lower edge to 4% above it. A quantile is the middle
# of a bin, so it is at most 2% off. The bins cover every number of float64, and only those that
# hold a value are stored. Bin 0 holds zeros, bin `_ONE` begins at 1, and bin `_ZERO`, the last one,
# holds infinite values. A place has the bins -`_ZERO` to `_ZERO`.
_GROWTH, _ONE, _ZERO = 1.04, 19_000, 37_200
_WIDTH = 2 * _ZERO + 1


@checked
class Sketch:
    """Mean, standard error, extremes and quantiles of one quantity at each of P places.

    A place is a block or a decoding step. At each place an item (a prompt, a window) gives the
    values of some tokens. The mean is taken over items, after the mean over the tokens of each
    item. The standard error treats items as independent. Extremes and quantiles are over tokens.

    Args:
        places: P, number of places.
        near_one: resolve quantiles of 1 - x instead of x.

    Raises:
        InputError: if there is no place; of its methods, if the places or the shares do not fit.

    Example:
        >>> import torch
        >>> from prunelit.metrics import Sketch
        >>> sketch = Sketch(places=1)
        >>> sketch.update(torch.tensor([[[1.0, 3.0]], [[4.0, torch.nan]]]))  # two items
        >>> sketch.mean, sketch.highest  # over items; over tokens
        (tensor([3.], dtype=torch.float64), tensor([4.], dtype=torch.float64))
    """

    def __init__(self, places: int, near_one: bool = False) -> None:
        check_whole("places", places, 1)
        self.near_one = near_one
        # Items; sums over items of their means and squares; tokens, and the same over them.
        self._sums = torch.zeros(6, places, dtype=torch.float64)
        self._lowest = torch.full((places,), torch.inf, dtype=torch.float64)
        self._highest = torch.full((places,), -torch.inf, dtype=torch.float64)
        # The bins of all places that hold a value, in rising order, and the number of their values.
        self._bins = torch.zeros(0, dtype=torch.int64)
        self._counts = torch.zeros(0, dtype=torch.int64)

    @classmethod
    def of(cls, name: str, places: int) -> "Sketch":
        """A sketch of the quantity with this name, see `prunelit.metrics.deviations`."""
        return cls(places, near_one=unchanged_value(name) == 1)

    @property
    def places(self) -> int:
        """P, number of places."""
        return self._sums.shape[1]

    def update(self, values: Tensor) -> None:
        """Add items.

        Args:
            values: (B, P, T), NaN where an item has no token. Infinite values count.
        """
        if values.ndim != 3 or values.shape[1] != self.places:
            raise InputError(
                f"Expected values of shape (B, {self.places}, T) but got {tuple(values.shape)}."
            )
        values = values.detach().double().cpu()
        there = ~values.isnan()
        counts = there.sum(-1)
        has = counts > 0
        means = values.nansum(-1) / counts.clamp(min=1)
        filled = values.nan_to_num(0.0, torch.inf, -torch.inf)
        self._sums += torch.stack(
            [
                has.sum(0),
                means.sum(0),
                means.square().sum(0),
                counts.sum(0),
                filled.sum((0, 2)),
                filled.square().sum((0, 2)),
            ]
        )
        flat = values.movedim(1, 0).flatten(1)
        absent = flat.isnan()
        self._lowest = torch.minimum(self._lowest, flat.masked_fill(absent, torch.inf).amin(1))
        self._highest = torch.maximum(self._highest, flat.masked_fill(absent, -torch.inf).amax(1))
        place = torch.arange(self.places)[:, None].expand_as(flat)[~absent]
        numbers = _numbers(1 - flat[~absent] if self.near_one else flat[~absent])
        self._add(*(place * _WIDTH + _ZERO + numbers).unique(return_counts=True))

    def merge(self, other: "Sketch") -> None:
        """Add the values of another sketch of the same quantity and places."""
        if (other.places, other.near_one) != (self.places, self.near_one):
            raise InputError(
                f"Expected a sketch of {self.places} places of the same quantity but got one of "
                f"{other.places}."
            )
        self._sums += other._sums
        self._lowest = torch.minimum(self._lowest, other._lowest)
        self._highest = torch.maximum(self._highest, other._highest)
        self._add(other._bins, other._counts)

    @property
    def n(self) -> Tensor:
        """(P,) int64, number of items that have a token at the place."""
        return self._sums[0].long()

    @property
    def tokens(self) -> Tensor:
        """(P,) int64, number of tokens."""
        return self._sums[3].long()

    @property
    def mean(self) -> Tensor:
        """(P,), mean over items; NaN without items."""
        return self._sums[1] / self._sums[0]

    @property
    def standard_error(self) -> Tensor:
        """(P,), standard error of `mean`; NaN for fewer than two items."""
        return _error(*self._sums[:3])

    @property
    def token_error(self) -> Tensor:
        """(P,), standard error of the mean over tokens, which treats tokens as independent."""
        return _error(*self._sums[3:])

    @property
    def rms(self) -> Tensor:
        """(P,), root of the mean square over tokens."""
        return (self._sums[5] / self._sums[3]).sqrt()

    @property
    def lowest(self) -> Tensor:
        """(P,), lowest value over tokens; NaN without tokens."""
        return self._lowest.masked_fill(self.tokens == 0, torch.nan)

    @property
    def highest(self) -> Tensor:
        """(P,), highest value over tokens; NaN without tokens."""
        return self._highest.masked_fill(self.tokens == 0, torch.nan)

    def quantiles(self, shares: Sequence[float]) -> Tensor:
        """Compute the values below which these shares of the tokens lie.

        Args:
            shares: Q numbers in [0, 1].

        Returns:
            (Q, P), each within 2% of the value of a token (of 1 - value for a quantity near 1); NaN
            without tokens.
        """
        if not all(0 <= share <= 1 for share in shares):
            raise InputError(f"Expected shares in [0, 1] but got {list(shares)}.")
        if not len(self._bins):
            return torch.full((len(shares), self.places), torch.nan, dtype=torch.float64)
        cumulative = self._counts.cumsum(0)
        edges = torch.searchsorted(self._bins, torch.arange(self.places + 1) * _WIDTH)
        before = torch.cat([torch.zeros(1, dtype=torch.int64), cumulative])[edges]
        wanted = torch.tensor(shares, dtype=torch.float64)
        if self.near_one:
            wanted = 1 - wanted
        ranks = (wanted[:, None] * before.diff()).ceil().clamp(min=1).long() + before[:-1]
        index = torch.searchsorted(cumulative, ranks).clamp(max=len(self._bins) - 1)
        found = _middles(self._bins[index] % _WIDTH - _ZERO)
        found = 1 - found if self.near_one else found
        found = torch.maximum(torch.minimum(found, self._highest), self._lowest)
        return found.masked_fill(self.tokens == 0, torch.nan)

    def _add(self, bins: Tensor, counts: Tensor) -> None:
        together = torch.cat([self._bins, bins])
        self._bins, place = together.unique(return_inverse=True)
        added = torch.zeros_like(self._bins)
        self._counts = added.index_add_(0, place, torch.cat([self._counts, counts]))


def _numbers(values: Tensor) -> Tensor:
    """Number the bin of each value: 0 for zero, and negative numbers for negative values."""
    number = (values.abs().log() / math.log(_GROWTH)).floor() + _ONE
    return (number.clamp(0, _ZERO) * values.sign()).long()


def _middles(numbers: Tensor) -> Tensor:
    """Return the middle of each bin; that of the last one is infinite."""
    size = ((numbers.double().abs() - _ONE + 0.5) * math.log(_GROWTH)).exp()
    return numbers.sign() * size.masked_fill(numbers.abs() == _ZERO, torch.inf)


def _error(count: Tensor, total: Tensor, square: Tensor) -> Tensor:
    variance = (square - total.square() / count).clamp_min(0) / (count - 1)
    return (variance / count).sqrt().masked_fill(count < 2, torch.nan)

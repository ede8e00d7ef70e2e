"""Choose units, such as heads or neurons, by what the map that reads them loses."""

import math
from typing import Literal

import torch
from torch import Tensor

from prunelit.activations import Gram, Statistic, StatisticPair, TokenSums
from prunelit.errors import InputError
from prunelit.models.finite import all_finite
from prunelit.pruners.compensation import shared_factor
from prunelit.sparsity import keep_highest

UnitScore = Literal["activation", "reconstruction"]

# Times that `reconstruction` renews its scores.
_STEPS = 32


class UnitNorm(TokenSums):
    """Mean over tokens of the norm of each unit, which has as many channels as the others.

    Args:
        units: their number.
        device: device of the sums.
    """

    def __init__(self, units: int, device: torch.device | str = "cpu") -> None:
        super().__init__(units, device=device)

    def update(self, x: Tensor) -> None:  # type: ignore[override]
        self._sums[:-1] += x.unflatten(1, (len(self._sums) - 1, -1)).double().norm(dim=2).sum(0)
        self._sums[-1] += len(x)

    def select(self, columns: Tensor) -> "UnitNorm":
        raise NotImplementedError("it has units and no channels")

    @property
    def value(self) -> Tensor:
        """(U,), activation units."""
        return self.means().float()


def unit_statistic(score: str, compensate: bool, weight: Tensor, scored: Statistic) -> Statistic:
    """Build an empty statistic of what a map reads.

    Args:
        score: `reconstruction` needs the Gram matrix alone.
        compensate: the other columns of the map are to make up for those that go.
        weight: (O, I), the map.
        scored: the statistic of any other score.
    """
    if score != "reconstruction" and not compensate:
        return scored
    gram = Gram(weight.shape[1], weight.device)
    return gram if score == "reconstruction" else StatisticPair(gram, scored)


def inverse_gram(statistic: Statistic, damping: float, name: str) -> Tensor:
    """Compute the inverse of the damped Gram matrix of the inputs of a map, (I, I).

    Args:
        statistic: of `unit_statistic`, filled.
        damping: share of the mean of its diagonal that is added.
        name: of the map, for an error.

    Raises:
        InputError: if the inputs are not finite.
    """
    gram = statistic.first if isinstance(statistic, StatisticPair) else statistic
    assert isinstance(gram, Gram)
    if not all_finite(gram.value):
        raise _not_finite(name)
    factor, _ = shared_factor(gram, damping)
    return factor.T @ factor


def _not_finite(name: str) -> InputError:
    """Return the error of a map whose inputs are too large to be squared."""
    return InputError(
        f"The calibration inputs of {name!r} or their squares are not finite: load the model in a "
        "wider dtype, such as float32."
    )


def scored_value(statistic: Statistic, name: str) -> Tensor:
    """Give the value of `scored` of a filled `unit_statistic`."""
    scored = statistic.second if isinstance(statistic, StatisticPair) else statistic
    if not all_finite(scored.value):
        raise _not_finite(name)
    return scored.value


def keep_units(scores: Tensor, weight: Tensor, count: int) -> Tensor:
    """Keep all units but those with the lowest scores; units of an earlier round go first.

    Args:
        scores: (U,), higher stays.
        weight: (O, I), the map that reads the units.
        count: number of units to remove.

    Returns:
        (U,) bool.
    """
    alive = weight.any(0).view(len(scores), -1).any(1)
    scores = scores.masked_fill(~alive, -torch.inf)
    return keep_highest(scores[None], len(scores) - count)[0]


def keep_by_error(weight: Tensor, inverse: Tensor, units: int, count: int) -> Tensor:
    """Keep units so that a map without the others gives nearly the same, if it makes up for them.

    The error without unit u is the trace of ``W_u (V_uu)^-1 W_u^T``, where V is the inverse of the
    Gram matrix of the inputs (arXiv:2302.04089, section 3). Units go a few at a time;
    then W and V are those of the remaining ones.

    Args:
        weight: (O, I), float32.
        inverse: (I, I), V.
        units: number of units; each has I / units columns.
        count: number of them to remove.

    Returns:
        (U,) bool.
    """
    weight, inverse = weight.clone(), inverse.clone()
    size = weight.shape[1] // units
    keep = torch.ones(units, dtype=torch.bool, device=weight.device)
    steps = min(count, _STEPS)
    for step in range(steps):
        own = inverse.view(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        columns = weight.T.view(units, size, -1)
        errors = (columns * torch.linalg.solve(own, columns)).sum((1, 2))
        scores = errors.masked_fill(~weight.any(0).view(units, size).any(1), -torch.inf)
        scores = scores.masked_fill(~keep, torch.inf)
        left = math.ceil((count - int((~keep).sum())) / (steps - step))
        lowest = ~keep_highest(scores[None], units - left)[0]
        gone = lowest.repeat_interleave(size)
        change = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
        weight -= weight[:, gone] @ change
        weight[:, gone] = 0
        inverse -= inverse[:, gone] @ change
        inverse[gone] = 0
        inverse[:, gone] = 0
        inverse.diagonal()[gone] = 1
        keep &= ~lowest
    return keep


def without_columns(weight: Tensor, gone: Tensor, inverse: Tensor | None) -> Tensor:
    """Set columns of a map to 0; the others may make up for them by least squares.

    A weight that is 0 stays 0: an earlier method may have removed it.

    Args:
        weight: (O, I), float32.
        gone: (I,) bool.
        inverse: (I, I), of the damped Gram matrix of the inputs; None leaves the others alone.
    """
    zeros = gone | (weight == 0)
    if inverse is not None and gone.any():
        change = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
        weight = weight - weight[:, gone] @ change
    return weight.masked_fill(zeros, 0.0)

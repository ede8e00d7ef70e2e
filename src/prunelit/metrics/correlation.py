"""Spearman's rank correlation, with jackknife values for its standard error."""

import math
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import InputError

# Most groups of the jackknife. With 256 groups the standard error is known to within about
# 1 / sqrt(2 * 256), which is 4%.
GROUPS = 256


@checked
def spearman(one: Tensor, other: Tensor) -> tuple[float, Tensor]:
    """Spearman's rank correlation, in [-1, 1]; higher means more similar orders.

    Equal values share the mean of their ranks.

    Formula:
        ``Pearson correlation of rank(one) and rank(other)``

    Source:
        Spearman 1904, The proof and measurement of association between two things.

    Args:
        one: (n,), at least one value.
        other: (n,).

    Returns:
        The correlation, and the (G,) float64 correlations without each of G = min(n, 256) groups of
        items. A fixed seed draws the groups, so that two models have the same groups. The standard
        error of a difference of two models is then the one of the differences. A correlation is NaN
        for fewer than two values, for values that are all equal, and if a value is NaN.

    Raises:
        InputError: if they are no vectors of one length.

    Example:
        >>> import torch
        >>> from prunelit.metrics import spearman
        >>> value, without = spearman(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 3, 2, 4]))
        >>> value
        0.8
        >>> without.shape
        torch.Size([4])
    """
    if one.ndim != 1 or one.shape != other.shape or not len(one):
        raise InputError(
            "Expected two vectors of one length, at least 1, but got shapes "
            f"{tuple(one.shape)} and {tuple(other.shape)}."
        )
    x, y = (values.detach().double().cpu().numpy() for values in (one, other))
    groups = min(len(x), GROUPS)
    group = np.random.default_rng(0).permutation(len(x)) % groups
    without = [rank_correlation(x[group != g], y[group != g]) for g in range(groups)]
    return rank_correlation(x, y), torch.tensor(without, dtype=torch.float64)


@checked
def jackknife_error(without: Tensor) -> float:
    """Standard error of a statistic from its values without each group.

    Formula:
        ``sqrt((G - 1) / G sum_g (value_g - mean)^2)``

    Source:
        Quenouille 1956; Tukey 1958.

    Args:
        without: (G,), the value without each group.

    Returns:
        The error; NaN for fewer than two groups, and if a value is NaN.

    Raises:
        InputError: if it is no vector.

    Example:
        >>> import torch
        >>> from prunelit.metrics import jackknife_error
        >>> values = torch.tensor([1.0, 2.0, 6.0])
        >>> without = (values.sum() - values) / 2  # the mean without each value
        >>> jackknife_error(without)  # values.std() / sqrt(3)
        1.5275
    """
    if without.ndim != 1:
        raise InputError(f"Expected a vector of values but got shape {tuple(without.shape)}.")
    groups = len(without)
    if groups < 2:
        return math.nan
    without = without.double()
    spread = (without - without.mean()).square().sum()
    return float((spread * (groups - 1) / groups).sqrt())


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Compute Spearman's correlation of (n,) values; NaN where it is not defined."""
    if len(x) < 2 or not (np.ptp(x) > 0 and np.ptp(y) > 0):
        return math.nan
    result: Any = spearmanr(x, y)
    return float(result.statistic)

"""Spearman's rank correlation, with jackknife values for its standard error."""

from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

# Most groups of the jackknife. With 256 groups the standard error is known to within about
# 1 / sqrt(2 * 256), which is 4%.
GROUPS = 256


def spearman(one: Tensor, other: Tensor) -> tuple[float, Tensor]:
    """Spearman's rank correlation, in [-1, 1]; higher means more similar orders.

    Equal values share the mean of their ranks.

    Formula:
        ``Pearson correlation of rank(one) and rank(other)``

    Source:
        Spearman 1904, The proof and measurement of association between two things.

    Args:
        one: (n,).
        other: (n,).

    Returns:
        The correlation, and the (G,) float64 correlations without each of G = min(n, 256) groups of
        items. A fixed seed draws the groups, so that two models have the same groups. The standard
        error of a difference of two models is then the one of the differences.

    Example:
        >>> import torch
        >>> from prunelit.metrics import spearman
        >>> value, without = spearman(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 3, 2, 4]))
        >>> value
        0.8
        >>> without.shape
        torch.Size([4])
    """
    x, y = one.double().numpy(), other.double().numpy()
    groups = min(len(x), GROUPS)
    group = np.random.default_rng(0).permutation(len(x)) % groups
    without = [_spearman(x[group != g], y[group != g]) for g in range(groups)]
    return _spearman(x, y), torch.tensor(without, dtype=torch.float64)


def jackknife_error(without: Tensor) -> float:
    """Standard error of a statistic from its values without each group.

    Formula:
        ``sqrt((G - 1) / G sum_g (value_g - mean)^2)``

    Source:
        Quenouille 1956; Tukey 1958.

    Args:
        without: (G,), the value without each group, at least 2.

    Example:
        >>> import torch
        >>> from prunelit.metrics import jackknife_error
        >>> values = torch.tensor([1.0, 2.0, 6.0])
        >>> without = (values.sum() - values) / 2  # the mean without each value
        >>> jackknife_error(without)  # values.std() / sqrt(3)
        1.5275
    """
    groups = len(without)
    spread = (without - without.mean()).square().sum()
    return float((spread * (groups - 1) / groups).sqrt())


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    result: Any = spearmanr(x, y)
    return float(result.statistic)

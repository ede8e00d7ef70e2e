"""Rank correlation with an error bar that pairs."""

from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

# Groups of the jackknife: one item each up to this number of items. Its error is then known to
# within about 1 / sqrt(2 * 256), or 4%.
GROUPS = 256


def spearman(one: Tensor, other: Tensor) -> tuple[float, Tensor]:
    """Spearman's correlation, equal values sharing the mean of their ranks.

    Args:
        one: (n,).
        other: (n,).

    Returns:
        The correlation, and (G,) float64 the correlations without each of G = min(n, 256) groups
        of items, drawn by a fixed seed: the groups of two models are the same, so that the errors
        of a difference can be had from the differences.
    """
    x, y = one.double().numpy(), other.double().numpy()
    groups = min(len(x), GROUPS)
    group = np.random.default_rng(0).permutation(len(x)) % groups
    without = [_spearman(x[group != g], y[group != g]) for g in range(groups)]
    return _spearman(x, y), torch.tensor(without, dtype=torch.float64)


def jackknife_error(without: Tensor) -> float:
    """Standard error from the values without each group (Quenouille 1956, Tukey 1958).

    Args:
        without: (G,), at least 2.
    """
    groups = len(without)
    spread = (without - without.mean()).square().sum()
    return float((spread * (groups - 1) / groups).sqrt())


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    result: Any = spearmanr(x, y)
    return float(result.statistic)

"""Estimate the share of a score's lead over chance that is left after pruning."""

import math
from dataclasses import dataclass

import numpy as np

from prunelit.arguments import checked
from prunelit.errors import InputError, check_seed
from prunelit.metrics.checks import check_vectors

RESAMPLES = 2000
_CHUNK = 100  # resamples at a time
_TAIL = 0.025


@dataclass(frozen=True)
class Retained:
    """A ratio of leads over chance and its 95% interval.

    Args:
        value: (pruned - chance) / (dense - chance); 1 means nothing lost, 0 means chance. NaN if
            the dense model is not above chance.
        low: lower end of the interval. NaN if the dense model is not significantly above chance.
        high: upper end; NaN likewise.
        standard_error: standard deviation of the value over the resamples; NaN likewise.
        reason: why there is no interval; None if there is one.
    """

    value: float
    low: float
    high: float
    standard_error: float
    reason: str | None = None


@checked
def estimate_retained(
    dense: np.ndarray, pruned: np.ndarray, chance: np.ndarray, seed: int = 0
) -> Retained:
    """Estimate the retained share of a score, with a percentile bootstrap over items.

    Both models and chance are resampled together, item by item. If the dense model is not above
    chance in more than 2.5% of the resamples, the ratio has no bound at 95% confidence, and there
    is no interval.

    Formula:
        ``(mean(pruned) - mean(chance)) / (mean(dense) - mean(chance))``

    Source:
        Efron 1979, Bootstrap methods: another look at the jackknife.

    Args:
        dense: (n,), score of each item.
        pruned: (n,), score of each item.
        chance: (n,), expected score of random guessing.
        seed: seed of the resampling.

    Raises:
        InputError: if they are no vectors of one length, hold NaN, or there is no item.

    Example:
        >>> import numpy as np
        >>> from prunelit.metrics import estimate_retained
        >>> dense, pruned = np.ones(40), np.tile([1.0, 1, 1, 0], 10)
        >>> found = estimate_retained(dense, pruned, chance=np.full(40, 0.25))
        >>> found.value  # (0.75 - 0.25) / (1 - 0.25)
        0.6667
        >>> found.low < found.value < found.high
        True
    """
    check_vectors(dense=dense, pruned=pruned, chance=chance)
    check_seed("seed", seed)
    n = len(dense)
    if not n:
        raise InputError("Expected the score of at least one item but got none.")
    lead, own = dense - chance, pruned - chance
    value = float(own.mean() / lead.mean()) if lead.mean() > 0 else math.nan
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(RESAMPLES // _CHUNK):
        chosen = rng.integers(n, size=(_CHUNK, n))
        parts.append((lead[chosen].mean(1), own[chosen].mean(1)))
    leads, owns = (np.concatenate(part) for part in zip(*parts, strict=True))
    reason = None
    if math.isnan(value):
        reason = "the dense model is not above chance"
    elif n < 2:
        reason = "a single item"
    elif (leads <= 0).mean() > _TAIL:
        reason = "the dense model is not significantly above chance"
    if reason is not None:
        return Retained(value, math.nan, math.nan, math.nan, reason)
    ratios = owns[leads > 0] / leads[leads > 0]
    low, high = np.quantile(ratios, [_TAIL, 1 - _TAIL])
    return Retained(value, float(low), float(high), float(ratios.std(ddof=1)))

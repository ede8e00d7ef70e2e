"""How much of a score's lead over chance is left after pruning."""

import math
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_CHUNK = 100  # resamples at a time
_TAIL = 0.025


@dataclass(frozen=True)
class Retained:
    """A ratio of leads over chance and its 95% interval.

    Args:
        value: (pruned - chance) / (dense - chance); 1 is nothing lost, 0 is chance, NaN where the
            dense model does not lead.
        low: end of the interval; NaN where the dense model's lead is not clear of 0.
        high: other end; NaN likewise.
        standard_error: of the value over resamples; NaN likewise.
    """

    value: float
    low: float
    high: float
    standard_error: float


def retained(dense: np.ndarray, pruned: np.ndarray, chance: np.ndarray, seed: int = 0) -> Retained:
    """Retained score with a paired percentile bootstrap over items (Efron 1979).

    Both models and chance are resampled together. Where the dense model does not lead in more than
    2.5% of the resamples the ratio is not bounded with 95% confidence, and there is no interval.

    Args:
        dense: (n,), score of each item.
        pruned: (n,).
        chance: (n,), expected score of a model that guesses.
        seed: of the resampling.
    """
    n = len(dense)
    lead, own = dense - chance, pruned - chance
    value = float(own.mean() / lead.mean()) if lead.mean() > 0 else math.nan
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(RESAMPLES // _CHUNK):
        chosen = rng.integers(n, size=(_CHUNK, n))
        parts.append((lead[chosen].mean(1), own[chosen].mean(1)))
    leads, owns = (np.concatenate(part) for part in zip(*parts, strict=True))
    if math.isnan(value) or n < 2 or (leads <= 0).mean() > _TAIL:
        return Retained(value, math.nan, math.nan, math.nan)
    ratios = owns[leads > 0] / leads[leads > 0]
    low, high = np.quantile(ratios, [_TAIL, 1 - _TAIL])
    return Retained(value, float(low), float(high), float(ratios.std(ddof=1)))

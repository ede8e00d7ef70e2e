"""Estimate the share of a score's lead over chance that is left after pruning."""

import math
from dataclasses import dataclass

import numpy as np

from prunelit.arguments import checked
from prunelit.errors import InputError
from prunelit.metrics.checks import check_vectors
from prunelit.report.score_test import LEVEL, PairedScores, ScoreTest, critical_value


@dataclass(frozen=True)
class Retained:
    """A ratio of leads over chance and its bounds.

    Args:
        value: (pruned - chance) / (dense - chance); 1 means nothing lost, 0 means chance. NaN if
            the dense model is not above chance.
        low: lower one-sided 95% bound; minus infinity if there is none. NaN if the dense model is
            not significantly above chance.
        high: upper one-sided 95% bound; infinity if there is none. NaN likewise.
        standard_error: first order (delta method); NaN likewise.
        reason: why there are no bounds; None if there are.
    """

    value: float
    low: float
    high: float
    standard_error: float
    reason: str | None = None


@checked
def estimate_retained(dense: np.ndarray, pruned: np.ndarray, chance: np.ndarray) -> Retained:
    """Estimate the retained share of a score, with the bounds of a score test over items.

    There are no bounds if the dense model is not above chance at the one-sided 95% level: the ratio
    is then not bounded.

    Formula:
        ``(mean(pruned) - mean(chance)) / (mean(dense) - mean(chance))``

    Source:
        Fieller 1954, Some problems in interval estimation; the variance is that of
        `prunelit.report.score_test.ScoreTest`.

    Args:
        dense: (n,), score of each item, in [0, 1].
        pruned: (n,), score of each item, in [0, 1].
        chance: (n,), expected score of random guessing.

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
    if not len(dense):
        raise InputError("Expected the score of at least one item but got none.")
    return retained_share(PairedScores(dense, pruned, chance))


def retained_share(scores: PairedScores) -> Retained:
    """Estimate the retained share from paired scores, see `estimate_retained`.

    Internal: it also takes pseudo-values.
    """
    dense, pruned, floor = scores.weighted()
    lead, own = dense - floor, pruned - floor
    n = len(lead)
    value = float(own.mean() / lead.mean()) if lead.mean() > 0 else math.nan
    test, reason = ScoreTest(scores), None
    if math.isnan(value):
        reason = "the dense model is not above chance"
    elif n < 2:
        reason = "a single item"
    elif test.lead_z() < critical_value(LEVEL):
        reason = "the dense model is not significantly above chance"
    if reason is not None:
        return Retained(value, math.nan, math.nan, math.nan, reason)
    low, high = test.share_bounds(keep=1.0)
    error = float((own - value * lead).std(ddof=1)) / float(lead.mean()) / math.sqrt(n)
    return Retained(value, low, high, error)

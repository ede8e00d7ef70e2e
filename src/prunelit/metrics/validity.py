"""How far a second-order estimate can be trusted: ranks, and the range of dz where it is near."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

NEAR = 0.1  # relative error up to which an estimate counts as near
_BINS, _FEWEST = 12, 5  # at most so many bins, of at least so many tokens
# Float32 probabilities leave errors of about 5e-8 in an exact value, whatever its size.
_ROUNDING = 1e-6


@dataclass
class Validity:
    """Exact against estimated over N tokens: those where both are finite and exact is not rounding.

    Args:
        dz: (N,), size of the perturbation of the logits.
        exact: (N,).
        estimate: (N,).
        rank_correlation: Spearman's; NaN for fewer than three tokens.
        size: (K,), median dz of each bin of tokens, logit units.
        error: (K,), median relative error |estimate - exact| / exact of each bin.
        holds_to: highest dz of the last bin before the first with a median error of 10% or more; 0
            where the first bin has one, NaN without tokens.
    """

    dz: np.ndarray
    exact: np.ndarray
    estimate: np.ndarray
    rank_correlation: float
    size: np.ndarray
    error: np.ndarray
    holds_to: float


def quantity_validity(
    quantity: str, dz: np.ndarray, exact: np.ndarray, estimate: np.ndarray
) -> Validity:
    """`validity` of a quantity's estimate, where that of a cosine is one of 1 - cosine."""
    if quantity.endswith("cosine"):
        exact, estimate = 1 - exact, 1 - estimate
    return validity(dz, exact, estimate)


def validity(dz: np.ndarray, exact: np.ndarray, estimate: np.ndarray) -> Validity:
    """Judge an estimate.

    The tokens, sorted by dz, are cut into bins of equal number.

    Args:
        dz: (N,), size of the perturbation of the logits: its standard deviation under p.
        exact: (N,), a divergence: 1 - cosine or KL.
        estimate: (N,), of the same.
    """
    there = np.isfinite(exact) & np.isfinite(estimate) & (exact > _ROUNDING)
    dz, exact, estimate = dz[there], exact[there], estimate[there]
    n = len(exact)
    correlation = math.nan
    if n >= 3 and np.ptp(exact) > 0 and np.ptp(estimate) > 0:
        correlation = float(spearmanr(exact, estimate).statistic)  # type: ignore[attr-defined]
    order = np.argsort(dz, kind="stable")
    bins = np.array_split(order, max(1, min(_BINS, n // _FEWEST))) if n else []
    relative = np.abs(estimate - exact) / exact
    size, error = (np.array([np.median(x[chosen]) for chosen in bins]) for x in (dz, relative))
    failing = int(np.append(error >= NEAR, True).argmax())
    holds_to = float(dz[bins[failing - 1]].max()) if failing else 0.0
    return Validity(dz, exact, estimate, correlation, size, error, holds_to if n else math.nan)

"""Measure the range of dz in which a second-order estimate is near the exact value."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from prunelit.arguments import checked
from prunelit.errors import InputError
from prunelit.report.quantities import unchanged_value

NEAR = 0.1  # largest relative error of an estimate that counts as near
_BINS, _FEWEST = 12, 5  # most bins, and fewest tokens of a bin
# Float32 probabilities leave errors of about 5e-8 in an exact value of any size.
_ROUNDING = 1e-6


@dataclass
class Validity:
    """Exact values and estimates of N tokens, without infinite values and without rounding errors.

    Args:
        dz: (N,), size of the perturbation of the logits.
        exact: (N,), 1 - cosine or KL.
        estimate: (N,), estimate of `exact`.
        rank_correlation: Spearman's; NaN for fewer than three tokens.
        size: (K,), median dz of each bin of tokens, logit units.
        error: (K,), median relative error ``|estimate - exact| / exact`` of each bin.
        holds_to: largest dz before the first bin with a median error of 10% or more; 0 if that is
            the first of all bins, NaN without tokens.
    """

    dz: np.ndarray
    exact: np.ndarray
    estimate: np.ndarray
    rank_correlation: float
    size: np.ndarray
    error: np.ndarray
    holds_to: float


def measure_quantity_validity(
    quantity: str, dz: np.ndarray, exact: np.ndarray, estimate: np.ndarray
) -> Validity:
    """Measure the validity of the estimate of a quantity by name; a cosine is taken as 1 - cosine.

    Args:
        quantity: name, as `prunelit.metrics.deviations` gives it.
        dz: see `measure_validity`.
        exact: (N,), values of the quantity.
        estimate: (N,), values of its estimate.
    """
    if unchanged_value(quantity) == 1:
        exact, estimate = 1 - exact, 1 - estimate
    return measure_validity(dz, exact, estimate)


@checked
def measure_validity(dz: np.ndarray, exact: np.ndarray, estimate: np.ndarray) -> Validity:
    """Compare estimates with exact values in bins of dz.

    The tokens are sorted by dz and split into at most 12 bins with equal numbers of tokens.

    Formula:
        ``median over the tokens of a bin of |estimate - exact| / exact``

    Args:
        dz: (N,), size of the perturbation: standard deviation of z' - z under p, logit units.
        exact: (N,), 1 - cosine or KL.
        estimate: (N,), estimate of `exact`.

    Raises:
        InputError: if they are no vectors of one length.

    Example:
        >>> import numpy as np
        >>> from prunelit.metrics import measure_validity
        >>> dz = np.linspace(0.1, 2, 60)
        >>> found = measure_validity(dz, exact=dz**2, estimate=dz**2 * (1 + dz / 10))
        >>> found.holds_to < 1.1  # the estimate is 10% off at dz = 1
        True
    """
    if dz.ndim != 1 or not dz.shape == exact.shape == estimate.shape:
        raise InputError(
            "Expected vectors of one length as `dz`, `exact` and `estimate` but got shapes "
            f"{dz.shape}, {exact.shape} and {estimate.shape}."
        )
    there = np.isfinite(dz) & np.isfinite(exact) & np.isfinite(estimate) & (exact > _ROUNDING)
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

"""Estimate pass@k: the probability that at least one of k samples solves a problem."""

from math import comb

from prunelit.arguments import checked
from prunelit.errors import InputError


@checked
def estimate_pass_at_k(samples: int, right: int, k: int) -> float:
    """Estimate pass@k of one problem without bias, in [0, 1]; higher is better.

    The estimate is the share of all sets of k samples that hold a right sample. It is computed in
    integers until the last division.

    Formula:
        ``1 - C(n - c, k) / C(n, k)``

    Source:
        Chen et al. 2021, arXiv:2107.03374, eq. 1.

    Args:
        samples: n, number of samples.
        right: c, number of right samples.
        k: size of a set, at most n.

    Raises:
        InputError: unless 0 <= c <= n and 1 <= k <= n.

    Example:
        >>> from prunelit.metrics import estimate_pass_at_k
        >>> estimate_pass_at_k(samples=4, right=1, k=2)
        0.5
    """
    if not 0 <= right <= samples:
        raise InputError(f"Expected `right` in [0, {samples}] but got {right}.")
    if not 1 <= k <= samples:
        raise InputError(f"Expected `k` in [1, {samples}], the number of samples, but got {k}.")
    all_sets = comb(samples, k)
    return (all_sets - comb(samples - right, k)) / all_sets

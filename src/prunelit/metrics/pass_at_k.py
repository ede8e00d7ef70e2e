"""pass@k: does at least one of k samples solve the problem?"""

from math import comb

from prunelit.errors import InputError


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of pass@k of one problem (Chen et al. 2021, arXiv:2107.03374, eq. 1).

    1 - C(n - c, k) / C(n, k): the share of the sets of k samples that hold a right one, in whole
    numbers until the last division.

    Args:
        samples: n, drawn.
        right: c of them.
        k: asked for, at most n.

    Raises:
        InputError: if not 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= right <= samples:
        raise InputError(f"Expected `right` in [0, {samples}] but got {right}.")
    if not 1 <= k <= samples:
        raise InputError(f"Expected `k` in [1, {samples}], the number of samples, but got {k}.")
    all_sets = comb(samples, k)
    return (all_sets - comb(samples - right, k)) / all_sets

"""Second-order estimates of the deviations, to be read beside the exact values.

Each has the form of what it estimates, so the two compare directly, and its relative error in KL
or in 1 - cosine goes to 0 with the perturbation. Source: arXiv:2603.24652.
"""

import math

from torch import Tensor

from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.probability import Direction, check_direction
from prunelit.metrics.spaces.vector_pair import VectorPair


def cosine_estimate(pair: VectorPair) -> Tensor:
    """Estimate of cos(h, h + dh): 1 - |dh_orthogonal|^2 / (2 |h|^2).

    Args:
        pair: embeddings, or the vectors of a `LogitPair`.

    Returns:
        (...,) float64; no cosine for large perturbations, where it falls below -1.
    """
    return 1 - pair.squared_orthogonal / 2


def probability_cosine_estimate(pair: LogitPair) -> Tensor:
    """Estimate of cos(p, p'): 1 - Var_r(dz) / (2 T^2) with weights r = p^2 / |p|^2.

    Returns:
        (...,) float64.
    """
    norm = pair.dense_concentration
    mean = pair.dot(pair.dense_probability, pair.dense_weighted) / norm
    square = pair.dot(pair.dense_weighted, pair.dense_weighted) / norm
    return 1 - _half_variance(mean, square, pair.dense_only)


def kl_estimate(pair: LogitPair, direction: Direction) -> Tensor:
    """Estimate of a KL divergence: Var(dz) / (2 T^2), weighted by its first argument.

    Args:
        pair: logits of both models.
        direction: "dense_pruned" weighs by p, "pruned_dense" by p'.

    Returns:
        (...,) float64, nats.

    Raises:
        InputError: if the direction is another word.
    """
    check_direction(direction)
    if direction == "dense_pruned":
        mean, weighted, alone = pair.dense_mean, pair.dense_weighted, pair.dense_only
    else:
        mean, weighted, alone = pair.pruned_mean, pair.pruned_weighted, pair.pruned_only
    return _half_variance(mean, pair.dot(weighted, pair.log_ratio), alone)


def _half_variance(mean: Tensor, mean_square: Tensor, infinite: Tensor | None) -> Tensor:
    # u = dz / T less a constant: its variance is Var(dz) / T^2.
    half = (mean_square - mean.square()).clamp_min(0) / 2
    return half if infinite is None else half.masked_fill(infinite, math.inf)

"""Second-order estimates of cosines and KL divergences, each in the unit of the exact value.

An estimate can be compared with its exact value directly. Its relative error in KL, or in
1 - cosine, goes to 0 with the size of the perturbation.
"""

import math

from torch import Tensor

from prunelit.arguments import checked
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.probability import Direction, check_direction
from prunelit.metrics.spaces.vector_pair import VectorPair


@checked
def cosine_estimate(pair: VectorPair) -> Tensor:
    """Estimate the cosine of two vectors; 1 means no change.

    Formula:
        ``cos(h, h + dh) ~ 1 - |dh_orthogonal|^2 / (2 |h|^2)``

    Source:
        arXiv:2603.24652, estimate 1 (any space).

    Args:
        pair: embeddings, or the vectors of a `LogitPair`.

    Returns:
        (...,) float64. A large perturbation gives a value below -1.

    Example:
        >>> import torch
        >>> from prunelit.metrics import VectorPair, cosine_estimate
        >>> pair = VectorPair(torch.tensor([10.0, 0.0]), torch.tensor([10.0, 1.0]))
        >>> cosine_estimate(pair), pair.cosine
        (tensor(0.9950, dtype=torch.float64), tensor(0.9950, dtype=torch.float64))
    """
    return 1 - pair.squared_orthogonal / 2


@checked
def probability_cosine_estimate(pair: LogitPair) -> Tensor:
    """Estimate the cosine of two next-token distributions; 1 means no change.

    Formula:
        ``cos(p, p') ~ 1 - Var_r(dz) / (2 T^2)`` with weights ``r_i = p_i^2 / |p|^2``

    Source:
        arXiv:2603.24652, estimate 2.

    Args:
        pair: logits of both models.

    Returns:
        (...,) float64; minus infinity if only the pruned model excludes a token.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, probability_cosine_estimate
        >>> pair = LogitPair(torch.tensor([0.0, 0.0]), torch.tensor([0.1, -0.1]))
        >>> probability_cosine_estimate(pair)
        tensor(0.9950, dtype=torch.float64)
    """
    return 1 - _half_variance(pair.concentrated_mean, pair.concentrated_square, pair.dense_only)


@checked
def kl_estimate(pair: LogitPair, direction: Direction) -> Tensor:
    """Estimate a KL divergence; 0 means no change.

    The weights of the variance are the first distribution of the KL.

    Formula:
        ``KL(p || p') ~ Var_p(dz) / (2 T^2)``, ``KL(p' || p) ~ Var_p'(dz) / (2 T^2)``

    Source:
        arXiv:2603.24652, estimate 3.

    Args:
        pair: logits of both models.
        direction: "dense_pruned" weighs by p, "pruned_dense" by p'.

    Returns:
        (...,) float64, nats; infinite if only the model after the weighing one excludes a token.

    Raises:
        InputError: if the direction is another word.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, kl_estimate
        >>> pair = LogitPair(torch.tensor([0.0, 0.0]), torch.tensor([0.1, -0.1]))
        >>> kl_estimate(pair, "dense_pruned")
        tensor(0.0050, dtype=torch.float64)
    """
    check_direction(direction)
    if direction == "dense_pruned":
        return _half_variance(pair.dense_mean, pair.dense_square, pair.dense_only)
    return _half_variance(pair.pruned_mean, pair.pruned_square, pair.pruned_only)


def _half_variance(mean: Tensor, mean_square: Tensor, infinite: Tensor | None) -> Tensor:
    # u is dz / T minus a constant, so its variance is Var(dz) / T^2.
    half = (mean_square - mean.square()).clamp_min(0) / 2
    return half if infinite is None else half.masked_fill(infinite, math.inf)

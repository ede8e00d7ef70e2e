"""How far the logits z = W h move.

The functions take a `LogitPair` and return one float64 value per token, (...,). The temperature
plays no part, and tokens that a model excludes (-inf) are left out.
"""

from torch import Tensor

from prunelit.metrics.spaces.estimates import kl_estimate
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.token_mean import TokenMean


def logit_cosine(pair: LogitPair) -> Tensor:
    """cos(z, z'); unlike probabilities it changes when a constant is added to all logits."""
    return pair.vectors.cosine


def logit_mse(pair: LogitPair) -> Tensor:
    """Mean over V of (z' - z)^2."""
    return pair.vectors.squared_distance / pair.size


def logit_parallel(pair: LogitPair) -> Tensor:
    """Norm of the part of z' - z along z, relative to the norm of z."""
    return pair.vectors.parallel


def logit_orthogonal(pair: LogitPair) -> Tensor:
    """Norm of the part of z' - z orthogonal to z, relative to the norm of z."""
    return pair.vectors.orthogonal


def logit_std(pair: LogitPair) -> Tensor:
    """Standard deviation over V of z' - z (division by V).

    It ignores a shift common to all logits, as softmax does. In float32 rounding leaves about 3e-4
    times that shift where it should be 0.
    """
    mean = pair.vectors.total / pair.size
    variance = pair.vectors.squared_distance / pair.size - mean.square()
    return variance.clamp_min(0).sqrt()


def logit_std_p(pair: LogitPair) -> Tensor:
    """Standard deviation of z' - z under p, the next-token distribution of the dense model.

    Here alone the temperature counts: it is that of p.
    """
    return pair.temperature * (2 * kl_estimate(pair, "dense_pruned")).sqrt()


def logit_std_top(pair: LogitPair, k: int) -> Tensor:
    """Standard deviation of z' - z over the k highest dense logits (division by their number).

    Args:
        pair: logits of both models.
        k: number of tokens in [1, 10], cut to V.

    Raises:
        InputError: if `k` is not in [1, 10].
    """
    index = pair.top(k)[0]
    difference = pair.vectors.difference.gather(-1, index).double()
    if pair.excluded is None:
        return (difference - difference.mean(-1, keepdim=True)).square().mean(-1).sqrt()
    keep = ~pair.excluded.gather(-1, index)
    size = keep.sum(-1, keepdim=True)
    deviation = (difference - difference.sum(-1, keepdim=True) / size) * keep
    return (deviation.square().sum(-1) / size.squeeze(-1)).sqrt()


class LogitMSE(TokenMean):
    """Mean of `logit_mse` over tokens, logit units squared; update with (..., V) logits.

    Args:
        kwargs: see `torchmetrics.Metric`.
    """

    is_differentiable = True
    higher_is_better = False

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return logit_mse(LogitPair(dense, pruned))


class LogitCosine(TokenMean):
    """Mean of `logit_cosine` over tokens; update with (..., V) logits.

    Args:
        kwargs: see `torchmetrics.Metric`.
    """

    is_differentiable = True
    higher_is_better = True

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return logit_cosine(LogitPair(dense, pruned))

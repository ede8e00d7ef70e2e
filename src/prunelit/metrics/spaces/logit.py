"""Measure how far the logits z = W h move.

The functions take a `LogitPair` and return one float64 value per token, (...,). They ignore the
temperature, except for `logit_std_p`, and leave out tokens that a model excludes (-inf).
"""

from torch import Tensor

from prunelit.arguments import checked
from prunelit.metrics.spaces.estimates import kl_estimate
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.token_mean import TokenMean


@checked
def logit_cosine(pair: LogitPair) -> Tensor:
    """Cosine similarity of the logits, in [-1, 1]; 1 means no change of direction.

    Unlike a probability, it changes when a constant is added to all logits.

    Formula:
        ``cos(z, z') = <z, z'> / (|z| |z'|)``

    Source:
        arXiv:2603.24652, logit space.

    Args:
        pair: logits of both models.

    Returns:
        (...,) float64.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, logit_cosine
        >>> logit_cosine(LogitPair(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])))
        tensor(0.9600, dtype=torch.float64)
    """
    return pair.vectors.cosine


@checked
def logit_mse(pair: LogitPair) -> Tensor:
    """Mean squared difference of the logits; 0 means no change.

    Formula:
        ``1/V sum_i (z'_i - z_i)^2``

    Source:
        arXiv:2603.24652, logit space.

    Args:
        pair: logits of both models.

    Returns:
        (...,) float64, logit units squared.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, logit_mse
        >>> logit_mse(LogitPair(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 1.0])))
        tensor(5., dtype=torch.float64)
    """
    return pair.vectors.squared_distance / pair.size


@checked
def logit_parallel(pair: LogitPair) -> Tensor:
    """Length of the change along the dense logits, relative to their norm; 0 means none.

    Formula:
        ``|<z' - z, z>| / |z|^2``

    Source:
        arXiv:2603.24652: the part of the change that leaves the cosine as it is.

    Args:
        pair: logits of both models.

    Returns:
        (...,) float64, without a unit.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, logit_parallel
        >>> logit_parallel(LogitPair(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 1.0])))
        tensor(0.5000, dtype=torch.float64)
    """
    return pair.vectors.parallel


@checked
def logit_orthogonal(pair: LogitPair) -> Tensor:
    """Length of the change orthogonal to the dense logits, relative to their norm; 0 means none.

    Formula:
        ``|dz - z <dz, z> / |z|^2| / |z|`` with ``dz = z' - z``

    Source:
        arXiv:2603.24652: the part of the change that lowers the cosine.

    Args:
        pair: logits of both models.

    Returns:
        (...,) float64, without a unit.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, logit_orthogonal
        >>> logit_orthogonal(LogitPair(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 1.0])))
        tensor(0.5000, dtype=torch.float64)
    """
    return pair.vectors.orthogonal


@checked
def logit_std(pair: LogitPair) -> Tensor:
    """Standard deviation over the vocabulary of the change of the logits; 0 means no change.

    Like softmax, it ignores a shift of all logits. The rounding of such a shift leaves about 1e-8
    times the shift.

    Formula:
        ``sqrt(1/V sum_i (dz_i - mean(dz))^2)`` with ``dz = z' - z``

    Source:
        arXiv:2603.24652: the size of the perturbation dz.

    Args:
        pair: logits of both models.

    Returns:
        (...,) float64, logit units.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, logit_std
        >>> logit_std(LogitPair(torch.tensor([0.0, 0.0]), torch.tensor([5.0, 7.0])))
        tensor(1., dtype=torch.float64)
    """
    mean = pair.vectors.total / pair.size
    variance = pair.vectors.squared_distance / pair.size - mean.square()
    return variance.clamp_min(0).sqrt()


@checked
def logit_std_p(pair: LogitPair) -> Tensor:
    """Standard deviation of the change of the logits under the dense distribution p.

    This quantity alone depends on the temperature, which is that of p. 0 means no change.

    Formula:
        ``sqrt(sum_i p_i (dz_i - sum_j p_j dz_j)^2)`` with ``dz = z' - z``

    Source:
        arXiv:2603.24652: half its square over T^2 is the estimate of KL(p || p').

    Args:
        pair: logits of both models.

    Returns:
        (...,) float64, logit units.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, logit_std_p
        >>> logit_std_p(LogitPair(torch.tensor([0.0, 0.0]), torch.tensor([5.0, 7.0])))
        tensor(1., dtype=torch.float64)
    """
    return pair.temperature * (2 * kl_estimate(pair, "dense_pruned")).sqrt()


@checked
def logit_std_top(pair: LogitPair, k: int) -> Tensor:
    """Standard deviation of the change over the k highest dense logits; 0 means no change.

    Formula:
        ``sqrt(1/k sum_i (dz_i - mean(dz))^2)`` over the k tokens, with ``dz = z' - z``

    Source:
        arXiv:2603.24652: dz on the tokens that hold most of the probability.

    Args:
        pair: logits of both models.
        k: number of tokens in [1, 10]; V tokens if V is smaller.

    Returns:
        (...,) float64, logit units.

    Raises:
        InputError: if `k` is not in [1, 10].

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, logit_std_top
        >>> dense, pruned = torch.tensor([4.0, 3.0, -9.0]), torch.tensor([5.0, 2.0, 0.0])
        >>> logit_std_top(LogitPair(dense, pruned), k=2)
        tensor(1., dtype=torch.float64)
    """
    index = pair.top(k)[0]
    difference = pair.top_difference[..., :k]
    if pair.excluded is None:
        return (difference - difference.mean(-1, keepdim=True)).square().mean(-1).sqrt()
    keep = ~pair.excluded.gather(-1, index)
    size = keep.sum(-1, keepdim=True)
    deviation = (difference - difference.sum(-1, keepdim=True) / size) * keep
    return (deviation.square().sum(-1) / size.squeeze(-1)).sqrt()


class LogitMSE(TokenMean):
    """Mean of `logit_mse` over tokens, in logit units squared; 0 means no change, lower is better.

    Formula:
        ``mean over tokens of 1/V sum_i (z'_i - z_i)^2``

    Source:
        arXiv:2603.24652, logit space.

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitMSE
        >>> metric = LogitMSE()
        >>> dense = torch.tensor([[3.0, 4.0], [1.0, 0.0]])  # two tokens, V = 2
        >>> pruned = torch.tensor([[4.0, 1.0], [1.0, 0.0]])
        >>> metric.update(dense, pruned)
        >>> metric.compute()
        tensor(2.5000, dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = False

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return logit_mse(LogitPair(dense, pruned))


class LogitCosine(TokenMean):
    """Mean of `logit_cosine` over tokens, in [-1, 1]; 1 means no change, higher is better.

    Formula:
        ``mean over tokens of cos(z, z')``

    Source:
        arXiv:2603.24652, logit space.

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitCosine
        >>> metric = LogitCosine()
        >>> dense = torch.tensor([[3.0, 4.0], [1.0, 0.0]])  # two tokens, V = 2
        >>> pruned = torch.tensor([[4.0, 3.0], [2.0, 0.0]])
        >>> metric.update(dense, pruned)
        >>> metric.compute()
        tensor(0.9800, dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = True

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return logit_cosine(LogitPair(dense, pruned))

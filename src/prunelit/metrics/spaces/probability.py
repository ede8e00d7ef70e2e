"""Measure how far the next-token distribution p = softmax(z / T) moves.

The functions take a `LogitPair` and return one float64 value per token, (...,). Divergences are in
nats; they are sums over the vocabulary, not means. `LogitPair` defines the values for tokens that a
model excludes (-inf).
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import InputError, check_positive
from prunelit.metrics.spaces.buffers import Buffers, rows_per_chunk
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.quick_pair import exponentials
from prunelit.metrics.spaces.token_mean import TokenMean
from prunelit.metrics.spaces.vector_pair import widen

Direction = Literal["dense_pruned", "pruned_dense"]


@checked
def probability_cosine(pair: LogitPair) -> Tensor:
    """Cosine similarity of the distributions, in [0, 1]; 1 means no change.

    Formula:
        ``cos(p, p') = <p, p'> / (|p| |p'|)``

    Source:
        arXiv:2603.24652, probability space.

    Args:
        pair: logits of both models.

    Returns:
        (...,) float64.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, probability_cosine
        >>> dense, pruned = torch.tensor([0.6, 0.4]).log(), torch.tensor([0.4, 0.6]).log()
        >>> probability_cosine(LogitPair(dense, pruned))
        tensor(0.9231, dtype=torch.float64)
    """
    norm = (pair.dense_concentration * pair.pruned_concentration).sqrt()
    return (pair.overlap / norm).clamp(max=1)


@checked
def kl(pair: LogitPair, direction: Direction) -> Tensor:
    """Kullback-Leibler divergence of the distributions, at least 0; 0 means no change.

    Formula:
        ``KL(p || p') = sum_i p_i log(p_i / p'_i)`` for "dense_pruned",
        ``KL(p' || p) = sum_i p'_i log(p'_i / p_i)`` for "pruned_dense"

    Source:
        Kullback and Leibler 1951, On information and sufficiency; arXiv:2603.24652.

    Args:
        pair: logits of both models.
        direction: "dense_pruned" or "pruned_dense": the first model gives the weights.

    Returns:
        (...,) float64, nats; infinite if the second model excludes a token that the first does not.

    Raises:
        InputError: if the direction is another word.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, kl
        >>> dense, pruned = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
        >>> kl(LogitPair(dense, pruned), "dense_pruned")
        tensor(0.5108, dtype=torch.float64)
        >>> kl(LogitPair(dense, pruned), "pruned_dense")
        tensor(0.3681, dtype=torch.float64)
    """
    check_direction(direction)
    if direction == "dense_pruned":
        value, alone = -pair.dense_mean, pair.dense_only
    else:
        value, alone = pair.pruned_mean, pair.pruned_only
    # Rounding can leave a divergence of nearly 0 slightly below it.
    value = value.clamp_min(0)
    return value if alone is None else value.masked_fill(alone, math.inf)


@checked
def js(pair: LogitPair) -> Tensor:
    """Jensen-Shannon divergence of the distributions, in [0, log 2]; 0 means no change.

    Formula:
        ``1/2 KL(p || m) + 1/2 KL(p' || m)`` with ``m = (p + p') / 2``

    Source:
        Lin 1991, Divergence measures based on the Shannon entropy.

    Args:
        pair: logits of both models.

    Returns:
        (...,) float64, nats.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, js
        >>> dense, pruned = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
        >>> js(LogitPair(dense, pruned))
        tensor(0.1017, dtype=torch.float64)
    """
    # log(m / p) = u/2 + log cosh(u/2), and log(m / p') is that minus u.
    both = pair.pruned_mean - pair.dense_mean  # KL(p || p') + KL(p' || p)
    return (both / 2 - pair.mean_log_cosh).clamp_min(0) / 2


@checked
def top1_agreement(pair: LogitPair) -> Tensor:
    """1 if both models rank the same token first, else 0; 1 means no change.

    Formula:
        ``[argmax z = argmax z']``

    Source:
        arXiv:2603.24652.

    Args:
        pair: logits of both models.

    Returns:
        (...,) float64, 0 or 1.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, top1_agreement
        >>> top1_agreement(LogitPair(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 9.0])))
        tensor(1., dtype=torch.float64)
    """
    return (pair.dense_top[..., 0] == pair.pruned_top[..., 0]).double()


@checked
def topk_overlap(pair: LogitPair, k: int) -> Tensor:
    """Share of the k most likely dense tokens that the pruned model has among its own k.

    In [0, 1]; 1 means that both models have the same k tokens, in any order.

    Formula:
        ``|top_k(z) intersect top_k(z')| / k``

    Source:
        arXiv:2603.24652.

    Args:
        pair: logits of both models.
        k: number of tokens in [1, 10]; V tokens if V is smaller, and the value is then 1.

    Returns:
        (...,) float64.

    Raises:
        InputError: if `k` is not in [1, 10].

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, topk_overlap
        >>> dense, pruned = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([3.0, 1.0, 2.0])
        >>> topk_overlap(LogitPair(dense, pruned), k=2)
        tensor(0.5000, dtype=torch.float64)
    """
    dense, pruned = pair.top(k)
    shared = dense.unsqueeze(-1) == pruned.unsqueeze(-2)
    return shared.sum((-2, -1)).double() / dense.shape[-1]


def log_probability(logits: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of chosen tokens, in float64; a few rows are widened at a time.

    Args:
        logits: (N, V), any float type.
        token_ids: (N, K), ids in [0, V).
        temperature: T of the softmax.

    Returns:
        (N, K) float64, nats; NaN in a row whose logits hold NaN.

    Raises:
        InputError: if the device has no float64.
    """
    size = rows_per_chunk(logits)
    parts = []
    buffers = Buffers()
    for rows, ids in zip(logits.split(size), token_ids.split(size), strict=True):
        scaled = widen(rows, buffers, "scaled")
        if temperature != 1:
            scaled = torch.div(scaled, temperature, out=buffers.get("divided", scaled))
        highest = scaled.amax(-1, keepdim=True)
        total = exponentials(scaled, highest, buffers.get("exponentials", scaled))
        parts.append(scaled.gather(-1, ids) - highest - total.log())
    return torch.cat(parts)


def check_direction(direction: str) -> None:
    """Refuse an unknown direction.

    Raises:
        InputError: naming both directions.
    """
    if direction not in get_args(Direction):
        raise InputError(
            f'Expected `direction` "dense_pruned" or "pruned_dense" but got {direction!r}.'
        )


@checked
class ProbabilityKL(TokenMean):
    """Mean of `kl` over tokens, in nats; 0 means no change, lower is better.

    Formula:
        ``mean over tokens of KL(p || p')``, or of ``KL(p' || p)`` for "pruned_dense"

    Source:
        Kullback and Leibler 1951, On information and sufficiency; arXiv:2603.24652.

    Args:
        direction: "dense_pruned" weighs by the dense model's probabilities, "pruned_dense" by the
            pruned model's.
        temperature: T of the softmax.
        kwargs: see `torchmetrics.Metric`.

    Raises:
        InputError: if the direction is another word, or the temperature is not positive.

    Example:
        >>> import torch
        >>> from prunelit.metrics import ProbabilityKL
        >>> metric = ProbabilityKL("dense_pruned")
        >>> dense = torch.tensor([[0.5, 0.5], [0.2, 0.8]]).log()  # two tokens, V = 2
        >>> pruned = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
        >>> metric.update(dense, pruned)
        >>> metric.compute()
        tensor(0.2554, dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = False

    def __init__(
        self, direction: Direction = "dense_pruned", temperature: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_direction(direction)
        check_positive("temperature", temperature)
        self.direction: Direction = direction
        self.temperature = temperature

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return kl(LogitPair(dense, pruned, self.temperature), self.direction)


@checked
class ProbabilityCosine(TokenMean):
    """Mean of `probability_cosine` over tokens, in [0, 1]; 1 means no change, higher is better.

    Formula:
        ``mean over tokens of cos(p, p')``

    Source:
        arXiv:2603.24652, probability space.

    Args:
        temperature: T of the softmax.
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from prunelit.metrics import ProbabilityCosine
        >>> metric = ProbabilityCosine()
        >>> dense = torch.tensor([[0.6, 0.4], [0.2, 0.8]]).log()  # two tokens, V = 2
        >>> pruned = torch.tensor([[0.4, 0.6], [0.2, 0.8]]).log()
        >>> metric.update(dense, pruned)
        >>> metric.compute()
        tensor(0.9615, dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = True

    def __init__(self, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive("temperature", temperature)
        self.temperature = temperature

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return probability_cosine(LogitPair(dense, pruned, self.temperature))


class Top1Agreement(TokenMean):
    """Share of tokens for which both models rank the same next token first.

    In [0, 1]; 1 means no change, higher is better.

    Formula:
        ``mean over tokens of [argmax z = argmax z']``

    Source:
        arXiv:2603.24652.

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from prunelit.metrics import Top1Agreement
        >>> metric = Top1Agreement()
        >>> dense = torch.tensor([[1.0, 2.0], [1.0, 0.0]])  # two tokens, V = 2
        >>> pruned = torch.tensor([[0.0, 9.0], [0.0, 1.0]])
        >>> metric.update(dense, pruned)
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return top1_agreement(LogitPair(dense, pruned))

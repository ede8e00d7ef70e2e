"""How far the next-token distribution p = softmax(z / T) moves.

The functions take a `LogitPair` and return one float64 value per token, (...,); divergences are in
nats and summed, not averaged, over the vocabulary. Tokens with -inf: see `LogitPair`.
"""

import math
from typing import Any, Literal, get_args

from torch import Tensor
from torch.nn.functional import softplus

from prunelit.errors import InputError
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.token_mean import TokenMean

Direction = Literal["dense_pruned", "pruned_dense"]


def probability_cosine(pair: LogitPair) -> Tensor:
    """cos(p, p')."""
    dense, pruned = pair.dense_probability, pair.pruned_probability
    return pair.dot(dense, pruned) / (pair.dense_concentration * pair.dot(pruned, pruned)).sqrt()


def kl(pair: LogitPair, direction: Direction) -> Tensor:
    """Kullback-Leibler divergence.

    Args:
        pair: logits of both models.
        direction: "dense_pruned" is the sum of p log(p / p'), "pruned_dense" of p' log(p' / p). Inf
            where the second model excludes a token that the first does not.

    Raises:
        InputError: if the direction is another word.
    """
    check_direction(direction)
    if direction == "dense_pruned":
        value, alone = -pair.dense_mean, pair.dense_only
    else:
        value, alone = pair.pruned_mean, pair.pruned_only
    # Rounding can leave a divergence of nearly 0 slightly below it.
    value = value.clamp_min(0)
    return value if alone is None else value.masked_fill(alone, math.inf)


def js(pair: LogitPair) -> Tensor:
    """Jensen-Shannon divergence, in [0, log 2]: mean KL of p and of p' to their average m."""
    # log(m / p) = softplus(u) - log 2, and log(m / p') is that less u.
    log_excess = softplus(pair.log_ratio, threshold=40).sub_(math.log(2))
    return (0.5 * (pair.pruned_mean - pair.dot(log_excess, pair.mixture))).clamp_min(0)


def top1_agreement(pair: LogitPair) -> Tensor:
    """1 where both models rank the same token first, else 0."""
    return (pair.dense_top[..., 0] == pair.pruned_top[..., 0]).double()


def topk_overlap(pair: LogitPair, k: int) -> Tensor:
    """Share of the k highest dense tokens that are among the k highest pruned ones.

    Args:
        pair: logits of both models.
        k: number of tokens in [1, 10], cut to V; the overlap of all V tokens is 1.

    Raises:
        InputError: if `k` is not in [1, 10].
    """
    dense, pruned = pair.top(k)
    shared = dense.unsqueeze(-1) == pruned.unsqueeze(-2)
    return shared.sum((-2, -1)).double() / dense.shape[-1]


def check_direction(direction: str) -> None:
    """Refuse a direction other than the two.

    Raises:
        InputError: naming both.
    """
    if direction not in get_args(Direction):
        raise InputError(
            f'Expected `direction` "dense_pruned" or "pruned_dense" but got {direction!r}.'
        )


class ProbabilityKL(TokenMean):
    """Mean of `kl` over tokens, nats; update with (..., V) logits.

    Args:
        direction: "dense_pruned" weighs with the dense model's probabilities, "pruned_dense" with
            the pruned model's.
        temperature: T of the softmax.
        kwargs: see `torchmetrics.Metric`.

    Raises:
        InputError: if the direction is another word.
    """

    is_differentiable = True
    higher_is_better = False

    def __init__(
        self, direction: Direction = "dense_pruned", temperature: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_direction(direction)
        self.direction: Direction = direction
        self.temperature = temperature

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return kl(LogitPair(dense, pruned, self.temperature), self.direction)


class ProbabilityCosine(TokenMean):
    """Mean of `probability_cosine` over tokens; update with (..., V) logits.

    Args:
        temperature: T of the softmax.
        kwargs: see `torchmetrics.Metric`.
    """

    is_differentiable = True
    higher_is_better = True

    def __init__(self, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return probability_cosine(LogitPair(dense, pruned, self.temperature))


class Top1Agreement(TokenMean):
    """Share of tokens for which both models rank the same next token first.

    Args:
        kwargs: see `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return top1_agreement(LogitPair(dense, pruned))

"""How long two rollouts stay the same: as observed, and as forecast without the second one.

Step s counts from 0. The survival at s is the probability that the tokens of steps 0 to s agree.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import CensoredData, ecdf
from torch import Tensor

from prunelit.errors import InputError, check_positive
from prunelit.metrics.spaces.buffers import rows_per_chunk
from prunelit.metrics.spaces.vector_pair import check_shapes


@torch.no_grad()
def keep_probability(
    dense_logits: Tensor, pruned_logits: Tensor, tokens: Tensor, temperature: float = 1.0
) -> Tensor:
    """Probability that the pruned model samples the dense model's token, given that one's choice.

    Both take the highest z / T + g with the same Gumbel noise g. Both take y where, for every j,
    g_y - g_j >= max(log p_j / p_y, log p'_j / p'_y): with probability 1 / sum_j max(p_j / p_y,
    p'_j / p'_y), as differences of Gumbel noise are logistic. Divided by p_y, that the dense model
    takes y at all, it is 1 / (1 + sum_j max(0, p'_j p_y / p'_y - p_j)): 1 exactly where p' = p.

    Args:
        dense_logits: (N, V).
        pruned_logits: (N, V).
        tokens: (N,) ids that the dense model took.
        temperature: T.

    Returns:
        (N,) float64; 0 where the pruned model excludes the token.

    Raises:
        InputError: if the shapes differ or the temperature is not positive.
    """
    check_shapes(dense_logits, pruned_logits)
    check_positive("temperature", temperature)
    size = rows_per_chunk(dense_logits)
    parts = []
    for dense, pruned, token in zip(
        dense_logits.split(size), pruned_logits.split(size), tokens.split(size), strict=True
    ):
        log_p, log_q = (torch.log_softmax(z.float() / temperature, -1) for z in (dense, pruned))
        own, other = (x.gather(-1, token[:, None]) for x in (log_p, log_q))
        excess = (log_q + (own - other)).exp_().sub_(log_p.exp_()).clamp_min_(0)
        keep = 1 / (1 + excess.sum(-1).double())
        parts.append(keep.masked_fill(other[:, 0].isneginf(), 0))
    return torch.cat(parts)


@dataclass
class Survival:
    """Survival by step.

    Args:
        survival: (S,), probability that steps 0 to s agree.
        at_risk: (S,), prompts whose tokens agree before step s and that have a token there; a
            forecast expects a fraction of them.
        low: (S,), lower end of the confidence interval, NaN where it has none.
        high: (S,), upper end.
    """

    survival: np.ndarray
    at_risk: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def restricted_mean(self) -> float:
        """Expected number of tokens before the first that differs, of the S at most."""
        return float(self.survival.sum())

    @property
    def median(self) -> float:
        """First step by which half of the rollouts have diverged; NaN where fewer do."""
        (diverged,) = np.nonzero(self.survival <= 0.5 + 1e-12)
        return float(diverged[0]) if len(diverged) else math.nan


def kaplan_meier(last: np.ndarray, diverged: np.ndarray, steps: int) -> Survival:
    """The product-limit estimate from observed rollouts (Kaplan and Meier 1958).

    Args:
        last: (n,) for each prompt the step at which it diverged, or its last step: a rollout that
            agrees up to its end is censored there, after that step's token was seen to agree.
        diverged: (n,) bool, which of the two.
        steps: S.

    Returns:
        With 95% log-log confidence intervals, which are undefined before the first divergence and
        where none is left. The survival stays where nothing is at risk any more.

    Raises:
        InputError: if there is no prompt or a step is not in [0, S).
    """
    last, diverged = np.asarray(last), np.asarray(diverged, dtype=bool)
    if not len(last) or last.min() < 0 or last.max() >= steps:
        raise InputError(f"Expected steps in [0, {steps}) of at least one prompt but got {last}.")
    curve = ecdf(CensoredData(uncensored=last[diverged], right=last[~diverged])).sf
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The confidence interval is undefined", RuntimeWarning)
        interval = curve.confidence_interval(method="log-log")
    x = np.arange(steps)
    survival = curve.evaluate(x)
    ends = [
        np.where(survival < 1, end.evaluate(x), np.nan) for end in (interval.low, interval.high)
    ]
    return Survival(survival, (last[:, None] >= x).sum(0), *ends)


def forecast(keep: np.ndarray) -> Survival:
    """Survival from the probabilities of each step alone, which teacher forcing gives.

    A prompt survives step s with the product of its probabilities up to s. What `kaplan_meier`
    counts is replaced by its expectation: at risk at step s is the sum, over the prompts with a
    token there, of their survival before s; of these the sum of survival times (1 - probability)
    diverges. So a rollout that ends leaves both curves in the same way, and where every
    probability is 0 or 1, as under greedy decoding, the two are the same.

    Args:
        keep: (n, S) probabilities that a step's token agrees where all before do; NaN after the
            end of the dense rollout.

    Returns:
        Without a confidence interval.
    """
    there = ~np.isnan(keep)
    filled = np.where(there, keep, 1.0)
    before = np.cumprod(np.hstack([np.ones((len(keep), 1)), filled[:, :-1]]), 1)
    at_risk = (before * there).sum(0)
    events = (before * there * (1 - filled)).sum(0)
    hazard = np.divide(events, at_risk, out=np.zeros_like(events), where=at_risk > 0)
    absent = np.full(keep.shape[1], np.nan)
    return Survival(np.cumprod(1 - hazard), at_risk, absent, absent)

"""Survival of two rollouts: the probability that the tokens of steps 0 to s are the same.

It is observed from both rollouts, or forecast from the dense rollout alone. Steps count from 0.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import CensoredData, ecdf
from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import InputError, check_positive, check_whole
from prunelit.metrics.checks import check_ids, check_vectors
from prunelit.metrics.spaces.buffers import rows_per_chunk
from prunelit.metrics.spaces.vector_pair import check_shapes, widen


@checked
@torch.no_grad()
def keep_probability(
    dense_logits: Tensor, pruned_logits: Tensor, tokens: Tensor, temperature: float = 1.0
) -> Tensor:
    """Probability that the pruned model samples the token that the dense model sampled.

    Both models take the token with the highest z / T + g, with the same Gumbel noise g. Both take y
    if g_y - g_j >= max(log p_j / p_y, log p'_j / p'_y) for every j. The differences of Gumbel noise
    are logistic, so the probability of this is 1 / sum_j max(p_j / p_y, p'_j / p'_y). The formula
    follows after division by p_y, the probability that the dense model takes y.

    Formula:
        ``1 / (1 + sum_j max(0, p'_j p_y / p'_y - p_j))``, which is exactly 1 if p' = p

    Source:
        Gumbel-max sampling: Maddison et al. 2014, arXiv:1411.0030; the probability is derived here.

    Args:
        dense_logits: (N, V).
        pruned_logits: (N, V).
        tokens: (N,), ids that the dense model took.
        temperature: T of the softmax.

    Returns:
        (N,) float64 in [0, 1]; 0 if the pruned model excludes the token. 1 means no change.

    Raises:
        InputError: if the shapes differ, a token is no id in [0, V), or the temperature is not
            positive.

    Example:
        >>> import torch
        >>> from prunelit.metrics import keep_probability
        >>> dense, pruned = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> keep_probability(dense, pruned, torch.tensor([0]))
        tensor([0.5000], dtype=torch.float64)
        >>> keep_probability(dense, pruned, torch.tensor([1]))
        tensor([1.], dtype=torch.float64)
    """
    check_shapes(dense_logits, pruned_logits)
    if dense_logits.ndim != 2 or tokens.shape != dense_logits.shape[:1]:
        raise InputError(
            f"Expected logits of shape (N, V) and tokens of shape (N,) but got "
            f"{tuple(dense_logits.shape)} and {tuple(tokens.shape)}."
        )
    check_ids("tokens", tokens, dense_logits.shape[1])
    tokens = tokens.long()
    check_positive("temperature", temperature)
    temperature = float(temperature)
    size = rows_per_chunk(dense_logits)
    parts = []
    for dense, pruned, token in zip(
        dense_logits.split(size), pruned_logits.split(size), tokens.split(size), strict=True
    ):
        log_p, log_q = (torch.log_softmax(widen(z) / temperature, -1) for z in (dense, pruned))
        own, other = (x.gather(-1, token[:, None]) for x in (log_p, log_q))
        excess = (log_q + (own - other)).exp_().sub_(log_p.exp_()).clamp_min_(0)
        keep = 1 / (1 + excess.sum(-1))
        parts.append(keep.masked_fill(other[:, 0].isneginf(), 0))
    return torch.cat(parts)


@dataclass
class Survival:
    """Survival by step.

    Args:
        survival: (S,), probability that the tokens of steps 0 to s are the same.
        at_risk: (S,), number of prompts that agree before step s and have a token there. For a
            forecast it is an expected number.
        low: (S,), lower end of the confidence interval; NaN where there is none.
        high: (S,), upper end; NaN likewise.
    """

    survival: np.ndarray
    at_risk: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def restricted_mean(self) -> float:
        """Expected number of tokens before the first that differs, at most S."""
        return float(self.survival.sum())

    @property
    def median(self) -> float:
        """First step at which at least half of the rollouts have diverged; NaN if fewer do."""
        (diverged,) = np.nonzero(self.survival <= 0.5 + 1e-12)
        return float(diverged[0]) if len(diverged) else math.nan


@checked
def kaplan_meier(last: np.ndarray, diverged: np.ndarray, steps: int) -> Survival:
    """Estimate the survival from observed rollouts by the product-limit estimator.

    Formula:
        ``S(s) = prod over steps t <= s of (1 - diverged_t / at_risk_t)``

    Source:
        Kaplan and Meier 1958, Nonparametric estimation from incomplete observations.

    Args:
        last: (n,), for each prompt the step at which it diverged, or else its last step. A rollout
            that agrees up to its end is censored after its last step.
        diverged: (n,) bool, True if the prompt diverged at `last`.
        steps: S, number of steps.

    Returns:
        The survival with 95% log-log confidence intervals. They are NaN before the first divergence
        and at a survival of 0. The survival stays constant once no prompt is at risk.

    Raises:
        InputError: if there is no prompt, a step is not in [0, S), or the lengths differ.

    Example:
        >>> import numpy as np
        >>> from prunelit.metrics import kaplan_meier
        >>> found = kaplan_meier(np.array([0, 1, 2, 2]), np.array([True, True, False, False]), 3)
        >>> found.survival
        array([0.75, 0.5 , 0.5 ])
        >>> found.median
        1.0
    """
    check_whole("steps", steps, 1)
    check_vectors(last=last, diverged=diverged)
    diverged = diverged.astype(bool)
    if not len(last) or last.min() < 0 or last.max() >= steps:
        raise InputError(
            f"Expected at least one prompt and steps in [0, {steps}) but got the steps {last}."
        )
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


@checked
def forecast_survival(keep: np.ndarray) -> Survival:
    """Forecast the survival from the agreement probabilities of single steps.

    Teacher forcing on the dense rollout gives these probabilities. A prompt survives step s with
    the product of its probabilities up to s. The counts of `kaplan_meier` are replaced by their
    expectations. A rollout that ends therefore leaves both curves in the same way. If every
    probability is 0 or 1, as in greedy decoding, both curves are the same.

    Formula:
        ``S(s) = prod over steps t <= s of (1 - events_t / at_risk_t)`` with
        ``at_risk_t = sum over prompts of prod_{u < t} k_u`` and
        ``events_t = sum over prompts of (1 - k_t) prod_{u < t} k_u``

    Args:
        keep: (n, S), probabilities k_t that the token of a step is the same if all tokens before it
            are; NaN after the end of the dense rollout. See `keep_probability`.

    Returns:
        The survival, without a confidence interval.

    Raises:
        InputError: if there is no prompt, or a probability is not in [0, 1].

    Example:
        >>> import numpy as np
        >>> from prunelit.metrics import forecast_survival
        >>> forecast_survival(np.array([[1.0, 0.5], [0.5, np.nan]])).survival
        array([0.75 , 0.375])
    """
    if keep.ndim != 2 or not len(keep):
        raise InputError(
            f"Expected `keep` of shape (n, S) with at least one prompt but got {keep.shape}."
        )
    if ((keep < 0) | (keep > 1)).any():
        raise InputError("Expected probabilities in [0, 1] as `keep` but some are not.")
    there = ~np.isnan(keep)
    filled = np.where(there, keep, 1.0)
    before = np.cumprod(np.hstack([np.ones((len(keep), 1)), filled[:, :-1]]), 1)
    at_risk = (before * there).sum(0)
    events = (before * there * (1 - filled)).sum(0)
    hazard = np.divide(events, at_risk, out=np.zeros_like(events), where=at_risk > 0)
    absent = np.full(keep.shape[1], np.nan)
    return Survival(np.cumprod(1 - hazard), at_risk, absent, absent)

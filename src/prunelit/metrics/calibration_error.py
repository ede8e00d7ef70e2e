"""Measure how well the confidence of a model fits its accuracy: Brier score and ECE."""

import torch
from torch import Tensor


def brier_scores(scores: Tensor, label: Tensor) -> Tensor:
    """Squared distance of the probabilities of the choices from the right answer.

    The mean over questions is the Brier score; lower is better.

    Formula:
        ``sum_c (q_c - [c = label])^2`` with ``q = softmax(scores)`` over the choices

    Source:
        Brier 1950, Verification of forecasts expressed in terms of probability.

    Args:
        scores: (n, C), log-likelihoods; minus infinity if a question has fewer choices.
        label: (n,), index of the right choice.

    Returns:
        (n,), from 0 (sure and right) to 2 (sure and wrong).

    Example:
        >>> import torch
        >>> from prunelit.metrics import brier_scores
        >>> brier_scores(torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([0, 0]))
        tensor([0.5000, 0.0200])
    """
    right = torch.nn.functional.one_hot(label, scores.shape[1])
    return (scores.softmax(1) - right).square().sum(1)


def calibration_gaps(scores: Tensor, label: Tensor, bins: int = 15) -> Tensor:
    """Contribution of each question to the expected calibration error (ECE).

    In an overconfident bin each question contributes confidence - correct, in an underconfident bin
    correct - confidence; the mean over questions is the ECE. Thus its standard error (first order)
    and its differences between two models are computed as for any other metric. Lower is better.
    In a well-calibrated model most of the ECE is noise, which falls with more questions.

    Formula:
        ``ECE = sum over bins of n_b / n |accuracy_b - confidence_b|``, with bins of equal width

    Source:
        Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Args:
        scores: (n, C), log-likelihoods; minus infinity if a question has fewer choices.
        label: (n,), index of the right choice.
        bins: number of bins. The confidence is the probability of the most likely choice.

    Returns:
        (n,), in the dtype of the scores; a single value may be negative.

    Example:
        >>> import torch
        >>> from prunelit.metrics import calibration_gaps
        >>> scores = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
        >>> gaps = calibration_gaps(scores, torch.tensor([0, 1]))  # sure twice, right once
        >>> gaps.mean()
        tensor(0.4000)
    """
    confidence, chosen = scores.softmax(1).max(1)
    gap = confidence - (chosen == label).to(scores.dtype)
    edges = torch.linspace(0, 1, bins + 1, dtype=scores.dtype)[1:-1]
    index = torch.bucketize(confidence, edges, right=True)
    sums = gap.new_zeros(bins).index_add_(0, index, gap)
    return gap * sums.sign()[index]

"""Measure how well the confidence of a model fits its accuracy: Brier score and ECE."""

import torch
from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import InputError, check_whole
from prunelit.metrics.checks import check_ids


@checked
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

    Raises:
        InputError: if the shapes do not fit, a label is no choice, or a question has no finite
            log-likelihood.

    Example:
        >>> import torch
        >>> from prunelit.metrics import brier_scores
        >>> brier_scores(torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([0, 0]))
        tensor([0.5000, 0.0200])
    """
    probability = _probability(scores, label)
    right = torch.nn.functional.one_hot(label.long(), scores.shape[1])
    return (probability - right).square().sum(1)


@checked
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

    Raises:
        InputError: as in `brier_scores`, or if there is no bin.

    Example:
        >>> import torch
        >>> from prunelit.metrics import calibration_gaps
        >>> scores = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
        >>> gaps = calibration_gaps(scores, torch.tensor([0, 1]))  # sure twice, right once
        >>> gaps.mean()
        tensor(0.4000)
    """
    check_whole("bins", bins, 1)
    confidence, chosen = _probability(scores, label).max(1)
    gap = confidence - (chosen == label).to(scores.dtype)
    edges = torch.linspace(0, 1, bins + 1, dtype=scores.dtype)[1:-1]
    index = torch.bucketize(confidence, edges, right=True)
    sums = gap.new_zeros(bins).index_add_(0, index, gap)
    return gap * sums.sign()[index]


def _probability(scores: Tensor, label: Tensor) -> Tensor:
    if scores.ndim != 2 or not scores.shape[1] or label.shape != scores.shape[:1]:
        raise InputError(
            "Expected `scores` of shape (n, C) and `label` of shape (n,) but got "
            f"{tuple(scores.shape)} and {tuple(label.shape)}."
        )
    if not scores.is_floating_point():
        raise InputError(f"Expected log-likelihoods as `scores` but got {scores.dtype}.")
    check_ids("label", label, scores.shape[1])
    probability = scores.softmax(1)
    if wrong := probability.isnan().any(1).nonzero().flatten().tolist():
        raise InputError(
            "Expected `scores` with a finite log-likelihood for each question, and no NaN, but "
            f"row {wrong[0]} is {scores[wrong[0]].tolist()}."
        )
    return probability

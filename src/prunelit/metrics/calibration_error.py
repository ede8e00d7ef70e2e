"""How well a model knows how sure it may be of a choice."""

import torch
from torch import Tensor


def brier_scores(scores: Tensor, label: Tensor) -> Tensor:
    """Squared distance of the choices' probabilities from the right answer (Brier 1950).

    Probabilities are the softmax of the scores over the choices.

    Args:
        scores: (n, C), log-likelihoods; minus infinity where a question has fewer choices.
        label: (n,), index of the right choice.

    Returns:
        (n,), from 0 (sure and right) to 2 (sure and wrong).
    """
    right = torch.nn.functional.one_hot(label, scores.shape[1])
    return (scores.softmax(1) - right).square().sum(1)


def calibration_gaps(scores: Tensor, label: Tensor, bins: int = 15) -> Tensor:
    """Values of questions whose mean is the expected calibration error (arXiv:1706.04599, eq. 3).

    The error is the mean over equally wide bins of confidence, weighted by their questions, of
    |accuracy - confidence|. Of a bin that is too sure every question counts its confidence minus
    1 or 0 for right or wrong, and of one that is not sure enough the negative. Thus means,
    standard errors (first order) and paired differences are those of any other metric. In a
    well-calibrated model most of the error is noise, and it falls with more questions.

    Args:
        scores: (n, C), log-likelihoods; minus infinity where a question has fewer choices.
        label: (n,), index of the right choice.
        bins: of confidence, the probability of the likeliest choice.

    Returns:
        (n,), in the scores' dtype.
    """
    confidence, chosen = scores.softmax(1).max(1)
    gap = confidence - (chosen == label).to(scores.dtype)
    edges = torch.linspace(0, 1, bins + 1, dtype=scores.dtype)[1:-1]
    index = torch.bucketize(confidence, edges, right=True)
    sums = gap.new_zeros(bins).index_add_(0, index, gap)
    return gap * sums.sign()[index]

"""Scores of weights that several methods begin with."""

from torch import Tensor


def activation_scores(weight: Tensor, square: Tensor) -> Tensor:
    """Score weights by |W_oi| * ||x_i|| (Wanda, arXiv:2306.11695, eq. 1).

    Args:
        weight: (O, I).
        square: (I,), mean squared input.

    Returns:
        (O, I), higher stays.
    """
    return weight.abs() * square.sqrt()


def relative_scores(weight: Tensor, square: Tensor, power: float) -> Tensor:
    """Score weights by relative importance and activations (RIA, OpenReview Tr0lPx9woF).

    Args:
        weight: (O, I).
        square: (I,), mean squared input.
        power: exponent of the input norm.

    Returns:
        (O, I), higher stays.
    """
    size = weight.abs()
    # A row or column of zeros sums to 0.
    tiny = 1e-30
    by_row = size / size.sum(1, keepdim=True).clamp(min=tiny)
    by_column = size / size.sum(0, keepdim=True).clamp(min=tiny)
    return (by_row + by_column) * square.pow(power / 2)

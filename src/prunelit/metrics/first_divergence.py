"""Find the first step at which the tokens of two rollouts differ."""

from torch import Tensor


def find_first_divergence(dense: Tensor, pruned: Tensor) -> tuple[Tensor, Tensor]:
    """Find the step (from 0) of the first token that differs; a later step means less change.

    Two equal rollouts give their length. If one rollout ends earlier, the step of its end differs.

    Formula:
        ``min {s : y_s != y'_s}``

    Args:
        dense: (..., S), token ids of rollouts of the dense model, -1 after the end.
        pruned: (..., S), of the pruned model.

    Returns:
        The step, and 1 if any token differs, else 0; both (...) float64.

    Example:
        >>> import torch
        >>> from prunelit.metrics import find_first_divergence
        >>> dense, pruned = torch.tensor([5, 6, 7, -1]), torch.tensor([5, 6, 8, 9])
        >>> find_first_divergence(dense, pruned)
        (tensor(2., dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    different = dense != pruned
    diverged = different.any(-1)
    length = (dense >= 0).sum(-1)
    first = different.int().argmax(-1).where(diverged, length)
    return first.double(), diverged.double()

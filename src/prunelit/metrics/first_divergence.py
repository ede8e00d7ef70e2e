"""Find the first step at which the tokens of two rollouts differ."""

from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import InputError
from prunelit.metrics.checks import check_ids


@checked
def find_first_divergence(dense: Tensor, pruned: Tensor) -> tuple[Tensor, Tensor]:
    """Find the step (from 0) of the first token that differs; a later step means less change.

    Two equal rollouts give their length. If one rollout ends earlier, the step of its end differs.

    Formula:
        ``min {s : y_s != y'_s}``

    Args:
        dense: (..., S), token ids of rollouts of the dense model, -1 after the end.
        pruned: (..., S), of the pruned model; S is at least 1.

    Returns:
        The step, and 1 if any token differs, else 0; both (...) float64.

    Raises:
        InputError: if the shapes differ or there is no step, or if an id is no whole number.

    Example:
        >>> import torch
        >>> from prunelit.metrics import find_first_divergence
        >>> dense, pruned = torch.tensor([5, 6, 7, -1]), torch.tensor([5, 6, 8, 9])
        >>> find_first_divergence(dense, pruned)
        (tensor(2., dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    if dense.shape != pruned.shape or not dense.ndim or not dense.shape[-1]:
        raise InputError(
            "Expected dense and pruned token ids of one shape (..., S) with at least one step but "
            f"got {tuple(dense.shape)} and {tuple(pruned.shape)}."
        )
    for name, ids in (("dense", dense), ("pruned", pruned)):
        check_ids(name, ids)
    different = dense != pruned
    diverged = different.any(-1)
    length = (dense >= 0).sum(-1)
    first = different.int().argmax(-1).where(diverged, length)
    return first.double(), diverged.double()

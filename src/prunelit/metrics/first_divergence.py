"""Where two rollouts part."""

from torch import Tensor


def first_divergence(dense: Tensor, pruned: Tensor) -> tuple[Tensor, Tensor]:
    """The step (from 0) of the first token that differs, and whether any does.

    A pair that never differs counts its whole length; a text that ends inside the other one differs
    from it where it ends.

    Args:
        dense: (..., S) ids of rollouts, -1 after their end.
        pruned: (..., S), of the other model.

    Returns:
        Both (...), float64.
    """
    different = dense != pruned
    diverged = different.any(-1)
    length = (dense >= 0).sum(-1)
    first = different.int().argmax(-1).where(diverged, length)
    return first.double(), diverged.double()

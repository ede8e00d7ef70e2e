"""Dense and pruned on the same questions: whose answers change."""

from scipy.stats import binomtest
from torch import Tensor

FLIPS = ("agreement", "flips_to_wrong", "flips_to_right")


def answer_flips(dense: Tensor, pruned: Tensor, label: Tensor) -> dict[str, Tensor]:
    """For each question whether both models choose alike, and whether right or wrong changes.

    Args:
        dense: (n,), the dense model's choices.
        pruned: (n,), the pruned model's.
        label: (n,), the right ones.

    Returns:
        The columns `FLIPS`, each (n,) of 0 and 1, float64.
    """
    before, after = dense == label, pruned == label
    values = (dense == pruned, before & ~after, ~before & after)
    return {name: value.double() for name, value in zip(FLIPS, values, strict=True)}


def mcnemar(to_wrong: int, to_right: int) -> float:
    """Two-sided p-value of McNemar's exact test (1947): would flips go either way equally often?

    Args:
        to_wrong: questions that only the dense model answers right.
        to_right: questions that only the pruned model answers right.

    Returns:
        In (0, 1]; 1 where nothing flips.
    """
    flips = to_wrong + to_right
    return float(binomtest(to_wrong, flips).pvalue) if flips else 1.0

"""Count the answers that change from the dense to the pruned model: flips."""

from scipy.stats import binomtest
from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import check_whole
from prunelit.metrics.checks import check_vectors

FLIPS = ("agreement", "flips_to_wrong", "flips_to_right")


@checked
def answer_flips(dense: Tensor, pruned: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Tell for each question if both models choose the same and if the answer flips.

    The mean of each column is a share of questions. Without any change, `agreement` is 1 and both
    flips are 0.

    Formula:
        ``agreement = [a = a']``, ``flips_to_wrong = [a = label != a']``,
        ``flips_to_right = [a != label = a']``

    Source:
        Dutta et al. 2024, Accuracy is not all you need, arXiv:2407.09141.

    Args:
        dense: (n,), choices of the dense model.
        pruned: (n,), choices of the pruned model.
        label: (n,), the right choices.

    Returns:
        The columns `agreement`, `flips_to_wrong` and `flips_to_right`, each (n,) float64, 0 or 1.

    Raises:
        InputError: if they are no vectors of one length, or hold NaN.

    Example:
        >>> import torch
        >>> from prunelit.metrics import answer_flips
        >>> columns = answer_flips(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([0, 1]))
        >>> columns["flips_to_wrong"]
        tensor([0., 1.], dtype=torch.float64)
    """
    check_vectors(dense=dense, pruned=pruned, label=label)
    before, after = dense == label, pruned == label
    values = (dense == pruned, before & ~after, ~before & after)
    return {name: value.double() for name, value in zip(FLIPS, values, strict=True)}


@checked
def mcnemar(to_wrong: int, to_right: int) -> float:
    """Two-sided p-value of McNemar's exact test that both flips are equally frequent.

    Formula:
        ``min(1, 2 P(X <= min(b, c)))`` with ``X ~ Binomial(b + c, 1/2)``

    Source:
        McNemar 1947, Note on the sampling error of the difference between correlated proportions.

    Args:
        to_wrong: b, number of questions that only the dense model answers right.
        to_right: c, number of questions that only the pruned model answers right.

    Returns:
        In (0, 1]; 1 if nothing flips.

    Raises:
        InputError: if a number is negative.

    Example:
        >>> from prunelit.metrics import mcnemar
        >>> mcnemar(to_wrong=5, to_right=0)
        0.0625
    """
    check_whole("to_wrong", to_wrong, 0)
    check_whole("to_right", to_right, 0)
    flips = to_wrong + to_right
    return float(binomtest(to_wrong, flips).pvalue) if flips else 1.0

"""Wanda: prune by weights and activations."""

from typing import Any

import torch
from torch import Tensor, nn

from prunelit.activations import SquaredNorm, Statistic
from prunelit.errors import InputError
from prunelit.models.architecture import oriented_weight
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.pruners.scores import activation_scores
from prunelit.sparsity import Sparsity, Unstructured


class Wanda(LinearPruner):
    """Prune weights by |weight| times input norm (Sun et al. 2023, arXiv:2306.11695, eq. 1).

    The score of weight (o, i) is |W_oi| * sqrt(mean over tokens of x_i^2). Weights compete within
    an output row (`Unstructured`) or within groups of neighbouring inputs (`SemiStructured`). The
    paper sums over tokens instead; the order of the scores is the same.

    Args:
        sparsity: how many weights to remove, and among which they compete.
        variant: `use_variant` of the public code: all rows lose the same share of their total
            score, instead of the same number of weights. Sort the scores of a row and sum them up;
            a weight is removed if the sum up to it is a small share of the row's total.
        options: `include`, `exclude`, `ratios`, `allocation` and `expert_tokens` of
            `LinearPruner`.

    Differs from the source: the public variant searches for the share until the ratio is met within
    0.1%; here exactly the asked number of weights is removed.

    Example:
        >>> import torch
        >>> from prunelit.pruners import Wanda
        >>> from prunelit.sparsity import Unstructured
        >>> from prunelit.activations import SquaredNorm
        >>> statistic = SquaredNorm(2)
        >>> statistic.update(torch.tensor([[1.0, 3.0], [0.5, 1.0]]))
        >>> weight = torch.tensor([[2.0, -1.0], [4.0, 1.0]])
        >>> Wanda(Unstructured(0.5)).prune_weight(weight, statistic)
        tensor([[ 0., -1.],
                [ 4.,  0.]])
    """

    def __init__(
        self,
        sparsity: Sparsity,
        *,
        variant: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(sparsity, **options)
        if variant and not (isinstance(sparsity, Unstructured) and sparsity.within is None):
            raise InputError(
                "Expected `Unstructured` sparsity without `within` for the variant of Wanda, "
                f"but got {type(sparsity).__name__}."
            )
        self.variant = variant
        if variant:
            self.within = "matrix"

    def statistic(self, linear: nn.Module) -> Statistic:
        weight = oriented_weight(linear)
        return SquaredNorm(weight.shape[1], weight.device)

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        scores = activation_scores(weight, statistic.value)
        if self.variant:
            order = scores.argsort(dim=1, stable=True)
            # In float64: in float32 the sums of neighbouring weights in a long row would be equal.
            shares = scores.double().gather(1, order).cumsum(1)
            shares /= shares[:, -1:].clamp(min=torch.finfo(torch.float64).tiny)
            scores = torch.empty_like(shares).scatter_(1, order, shares)
        return self.remove_lowest(weight, scores)

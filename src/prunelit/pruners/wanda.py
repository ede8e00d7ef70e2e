"""Wanda: pruning by weights and activations."""

from typing import Any

import torch
from torch import Tensor, nn

from prunelit.errors import InputError
from prunelit.models.architecture import oriented_weight
from prunelit.pruners.base import LinearPruner
from prunelit.sparsity import Sparsity, Unstructured
from prunelit.statistics import SquaredNorm, Statistic


class Wanda(LinearPruner):
    """Prune weights by |weight| times input norm (Sun et al. 2023, arXiv:2306.11695, eq. 1).

    The score of weight (o, i) is |W_oi| * sqrt(mean over tokens of x_i^2), compared within an
    output row (`Unstructured`) or within groups of neighbouring inputs (`SemiStructured`). The
    paper's norm is a sum over tokens; the mean ranks the weights of a row equally.

    Args:
        sparsity: how many weights to remove, and among which they compete.
        variant: the public code's `use_variant`: rows lose the same share of their total score,
            not the same number of weights. A weight goes if its row's scores up to and including
            its own sum to a small share of the row's total.
        options: `include`, `exclude`, `ratios` and `allocation` of `LinearPruner`.

    Differs from the source: the public variant bisects the share until the ratio is met to 0.1%;
    here exactly the asked number of weights goes.
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
                "Expected `Unstructured` sparsity without `within` for the variant of Wanda."
            )
        self.variant = variant
        if variant:
            self.within = "matrix"

    def statistic(self, linear: nn.Module) -> Statistic:
        weight = oriented_weight(linear)
        return SquaredNorm(weight.shape[1], weight.device)

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        scores = weight.abs() * statistic.value.sqrt()
        if self.variant:
            order = scores.argsort(dim=1, stable=True)
            # In float64: in float32 a long row's sum would tie neighbouring weights.
            shares = scores.double().gather(1, order).cumsum(1)
            shares /= shares[:, -1:].clamp(min=torch.finfo(torch.float64).tiny)
            scores = torch.empty_like(shares).scatter_(1, order, shares)
        return self.remove_lowest(weight, scores)

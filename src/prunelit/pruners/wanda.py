"""Wanda: pruning by weights and activations."""

import torch
from torch import Tensor, nn

from prunelit.models.architecture import oriented_weight
from prunelit.pruners.base import LinearPruner
from prunelit.statistics import SquaredNorm, Statistic


class Wanda(LinearPruner):
    """Prune weights by |weight| times input norm (Sun et al. 2023, arXiv:2306.11695, eq. 1).

    The score of weight (o, i) is |W_oi| * sqrt(mean over tokens of x_i^2), compared within an
    output row (`Unstructured`) or within groups of neighbouring inputs (`SemiStructured`). The
    paper's norm is a sum over tokens; the mean ranks the weights of a row equally.

    Args:
        sparsity: how many weights go, and within which groups they compete.
        include: shell patterns of module names inside a block, such as `mlp.*`.
        exclude: patterns taken out again.
    """

    def statistic(self, linear: nn.Module) -> Statistic:
        weight = oriented_weight(linear)
        return SquaredNorm(weight.shape[1], weight.device)

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        return self.remove_lowest(weight, weight.abs() * statistic.value.sqrt())

"""Magnitude pruning."""

from torch import Tensor

from prunelit.pruners.base import LinearPruner
from prunelit.statistics import Statistic


class Magnitude(LinearPruner):
    """Prune the weights nearest to 0 (Han et al. 2015, arXiv:1506.02626). Reads no data."""

    within = "matrix"

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        return self.remove_lowest(weight, weight.abs())

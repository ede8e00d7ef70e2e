"""RIA: relative importance and activations."""

from typing import Any

from torch import Tensor, nn

from prunelit.activations import SquaredNorm, Statistic
from prunelit.errors import InputError
from prunelit.models.architecture import oriented_weight
from prunelit.pruners.base import LinearPruner
from prunelit.pruners.scores import relative_scores
from prunelit.sparsity import Sparsity


class RIA(LinearPruner):
    """Prune by relative importance and activations (Zhang et al. 2024, OpenReview Tr0lPx9woF).

    The score of weight (o, i) is (|W_oi| / sum over its row + |W_oi| / sum over its column) times
    the input norm ||x_i|| to the power `power`. Weights compete within the whole matrix, as in the
    public code; `within="row"` is its option `--per_outneuron`.

    Args:
        sparsity: how many weights to remove, and among which they compete.
        power: exponent of the input norm, a of the paper.
        options: `include`, `exclude`, `ratios`, `allocation` and `expert_tokens` of
            `LinearPruner`.

    Example:
        >>> import torch
        >>> from prunelit.pruners import RIA
        >>> from prunelit.sparsity import Unstructured
        >>> from prunelit.activations import SquaredNorm
        >>> statistic = SquaredNorm(2)
        >>> statistic.update(torch.tensor([[1.0, 3.0], [0.5, 1.0]]))
        >>> weight = torch.tensor([[2.0, -1.0], [4.0, 1.0]])
        >>> RIA(Unstructured(0.5)).prune_weight(weight, statistic)
        tensor([[ 0., -1.],
                [ 4.,  0.]])
    """

    within = "matrix"

    def __init__(
        self,
        sparsity: Sparsity,
        *,
        power: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(sparsity, **options)
        if power < 0:
            raise InputError(f"Expected `power` >= 0 but got {power}.")
        self.power = power

    def statistic(self, linear: nn.Module) -> Statistic:
        weight = oriented_weight(linear)
        return SquaredNorm(weight.shape[1], weight.device)

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        return self.remove_lowest(weight, relative_scores(weight, statistic.value, self.power))

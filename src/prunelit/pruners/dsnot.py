"""DSnoT: exchange weights of another method's mask, without training."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunelit.activations import Gram, Moments, Statistic, StatisticPair
from prunelit.errors import InputError, check_positive, check_whole
from prunelit.models.architecture import oriented_weight
from prunelit.pruners.compensation import shared_factor
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.pruners.scores import activation_scores, relative_scores
from prunelit.sparsity import SemiStructured, Sparsity, Unstructured

Start = Literal["wanda", "magnitude", "ria", "sparsegpt"]


class DSnoT(LinearPruner):
    """Exchange weights of a mask until each output keeps its mean (Zhang et al. 2023, 2310.08915).

    The mask of another method's scores removes from output r, in the mean over tokens,
    ``e_r = sum over removed i of W_ri E[x_i]``. Each step exchanges two weights of the row:

    * the removed weight with the highest ``sign(e_r) W_ri E[x_i] / Var[x_i]`` comes back;
    * of the weights whose removal makes |e_r| smaller as well, ``sign(e_r) W_rj E[x_j] < 0``, that
      with the lowest score |W_rj| ||x_j|| goes.

    No weight is updated. With N:M, both weights are of one group.

    Args:
        sparsity: how many weights are removed, and among which they compete at first.
        start: scores of the first mask: those of `wanda`, `magnitude`, `ria`, or the saliency
            w^2 / diag(H^-1) of `sparsegpt`, without its update.
        exchanges: in a row, at most.
        threshold: a row is done when |e_r| is at most this share of what it was at first.
        damping: of H, as in `SparseGPT`.
        options: `include`, `exclude`, `ratios`, `allocation` and `expert_tokens` of
            `LinearPruner`.

    Differs from the source: the paper compares |e_r| with an absolute threshold, 0.1. Here an
    exchange that would not make |e_r| smaller ends the row, and a weight moves once.

    Example:
        >>> import torch
        >>> from prunelit.pruners import DSnoT
        >>> from prunelit.sparsity import Unstructured
        >>> from prunelit.activations import Moments
        >>> statistic = Moments(4)
        >>> statistic.update(torch.tensor([[2.0, 1.0, 0.5, 1.0], [2.0, 1.2, 0.6, 1.2]]))
        >>> weight = torch.tensor([[1.0, 0.5, 0.9, -0.6]])
        >>> DSnoT(Unstructured(0.5)).prune_weight(weight, statistic)  # Wanda: 0.5 and 0.9 go
        tensor([[1.0000, 0.0000, 0.9000, 0.0000]])
    """

    def __init__(
        self,
        sparsity: Sparsity,
        *,
        start: Start = "wanda",
        exchanges: int = 50,
        threshold: float = 0.1,
        damping: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(sparsity, **options)
        if not isinstance(sparsity, Unstructured | SemiStructured):
            raise InputError(
                f"Expected `Unstructured` or `SemiStructured` sparsity but got "
                f"{type(sparsity).__name__}: DSnoT exchanges weights of a row or of a group."
            )
        if start not in ("wanda", "magnitude", "ria", "sparsegpt"):
            raise InputError(
                f"Expected `start` wanda, magnitude, ria or sparsegpt but got {start!r}."
            )
        check_whole("exchanges", exchanges, 1)
        check_positive("damping", damping)
        if not threshold >= 0:
            raise InputError(f"Expected `threshold` >= 0 but got {threshold}.")
        self.start: Start = start
        self.exchanges = exchanges
        self.threshold = float(threshold)
        self.damping = float(damping)

    def statistic(self, linear: nn.Module) -> Statistic:
        weight = oriented_weight(linear)
        moments = Moments(weight.shape[1], weight.device)
        if self.start == "sparsegpt":
            return StatisticPair(moments, Gram(weight.shape[1], weight.device))
        return moments

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        mean, variance = statistic.value
        square = variance + mean.square()
        gone = weight == 0
        scores = self._scores(weight, square, statistic).masked_fill(gone, -torch.inf)
        keep = self.sparsity.keep_mask(scores) & ~gone
        keep = self._exchange(weight, keep, mean, variance, activation_scores(weight, square))
        return torch.where(keep, weight, 0.0)

    def _scores(self, weight: Tensor, square: Tensor, statistic: Statistic) -> Tensor:
        """Return the scores of the first mask."""
        if self.start == "wanda":
            return activation_scores(weight, square)
        if self.start == "ria":
            return relative_scores(weight, square, power=0.5)
        if self.start == "magnitude":
            return weight.abs()
        assert isinstance(statistic, StatisticPair)
        assert isinstance(statistic.second, Gram)
        factor, _ = shared_factor(statistic.second, self.damping)
        return weight.square() / factor.square().sum(0)  # H^-1 = U^T U

    def _exchange(
        self, weight: Tensor, keep: Tensor, mean: Tensor, variance: Tensor, scores: Tensor
    ) -> Tensor:
        """Return the mask after all exchanges; rows do not depend on each other."""
        group = self.sparsity.group if isinstance(self.sparsity, SemiStructured) else len(mean)
        groups = torch.arange(len(mean), device=mean.device) // group
        parts = weight * mean
        # An input that hardly varies is not preferred without bound.
        gains = parts / variance.clamp(min=1e-6 * variance.mean() + torch.finfo().tiny)
        error = (parts * ~keep).sum(1)
        limit = self.threshold * error.abs()
        keep, free, active = keep.clone(), weight != 0, torch.ones_like(error, dtype=torch.bool)
        rows = torch.arange(len(weight), device=weight.device)
        for _ in range(self.exchanges):
            active &= error.abs() > limit
            sign = error.sign()[:, None]
            leaving = keep & free & (sign * parts < 0)
            # A weight may come back if another one of its group can go.
            possible = leaving.view(len(weight), -1, group).any(2)[:, groups]
            coming = ~keep & free & (sign * parts > 0) & possible
            active &= coming.any(1)
            if not active.any():
                break
            back = (sign * gains).masked_fill(~coming, -torch.inf).argmax(1)
            leaving &= groups == groups[back][:, None]
            away = scores.masked_fill(~leaving, torch.inf).argmin(1)
            after = error - parts[rows, back] + parts[rows, away]
            active &= after.abs() < error.abs()
            error = torch.where(active, after, error)
            moved = rows[active]
            keep[moved, back[active]], keep[moved, away[active]] = True, False
            free[moved, back[active]], free[moved, away[active]] = False, False
        return keep

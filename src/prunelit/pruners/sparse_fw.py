"""SparseFW: find a mask by Frank-Wolfe on the relaxed problem."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunelit.activations import Gram, Statistic
from prunelit.errors import InputError, check_positive, check_whole
from prunelit.models.architecture import oriented_weight
from prunelit.pruners.least_squares import solve_on_support, squared_error, unit_gram
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.pruners.scores import activation_scores, relative_scores
from prunelit.sparsity import Sparsity

# Masks of up to a thousand iterations differ by more: it only decides between equal entries.
_TIE = 1e-6


class SparseFW(LinearPruner):
    """Prune by a mask of numbers in [0, 1] that is optimal, then rounded (arXiv:2510.13713).

    The relaxed mask M minimises the reconstruction error of the layer, ``||W X - (M * W) X||^2``,
    with as many kept weights as asked for. Frank-Wolfe solves it: an iteration finds the mask V
    that the gradient ``-2 W * ((W - M * W) X X^T)`` favours most, and moves M towards it by
    ``2 / (t + 2)``. In the end the highest entries of M stay.

    Args:
        sparsity: how many weights are removed, and among which they compete.
        start: scores of the first mask, those of `wanda` or of `ria`.
        fixed: share of the first mask's weights, those with the highest scores in each row, that
            stay whatever the error (alpha of the paper). Rounding then changes M less.
        iterations: each costs one product of the weight and an (I, I) matrix.
        update: solve for the best weights of the mask afterwards, as `ADMM` does. False leaves the
            weights that stay as they are. `OBSUpdate` gives those of SparseGPT instead.
        damping: added to the diagonal of X X^T, which is scaled to 1.
        options: `include`, `exclude`, `ratios`, `allocation` and `expert_tokens` of
            `LinearPruner`.

    Differs from the source: X X^T is damped a little, exactly the asked number of weights is
    removed, and there are 100 iterations where the paper takes 2,000. The first mask stays where
    the rounded one has a greater error. `update` is no part of it.

    Example:
        >>> import torch
        >>> from prunelit.pruners import SparseFW
        >>> from prunelit.sparsity import Unstructured
        >>> from prunelit.activations import Gram
        >>> statistic = Gram(2)
        >>> statistic.update(torch.tensor([[1.0, 3.0], [0.5, 1.0]]))
        >>> weight = torch.tensor([[2.0, -1.0], [4.0, 1.0]])
        >>> SparseFW(Unstructured(0.5)).prune_weight(weight, statistic)
        tensor([[ 0., -1.],
                [ 4.,  0.]])
    """

    def __init__(
        self,
        sparsity: Sparsity,
        *,
        start: Literal["wanda", "ria"] = "wanda",
        fixed: float = 0.9,
        iterations: int = 100,
        update: bool = False,
        damping: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(sparsity, **options)
        if start not in ("wanda", "ria"):
            raise InputError(f"Expected `start` wanda or ria but got {start!r}.")
        if not 0 <= fixed < 1:
            raise InputError(f"Expected `fixed` in [0, 1) but got {fixed}.")
        check_whole("iterations", iterations, 1)
        check_positive("damping", damping)
        self.start = start
        self.fixed = float(fixed)
        self.iterations = iterations
        self.update = update
        self.damping = float(damping)

    def statistic(self, linear: nn.Module) -> Statistic:
        weight = oriented_weight(linear)
        return Gram(weight.shape[1], weight.device)

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        assert isinstance(statistic, Gram)
        gram, scale = unit_gram(statistic, self.damping)
        gone = weight == 0
        keep = self._choose(gram, weight * scale, self._scores(weight, scale.square()), gone)
        if not self.update:
            return torch.where(keep, weight, 0.0)
        dense = weight * scale
        pruned = solve_on_support(gram, dense, keep, dense) / scale
        return torch.where(keep & (scale > 0), pruned, 0.0)

    def _scores(self, weight: Tensor, square: Tensor) -> Tensor:
        if self.start == "wanda":
            return activation_scores(weight, square)
        return relative_scores(weight, square, power=0.5)

    def _choose(self, gram: Tensor, dense: Tensor, scores: Tensor, gone: Tensor) -> Tensor:
        """Return the rounded mask; weights of an earlier round are removed first."""
        first = self.sparsity.keep_mask(scores.masked_fill(gone, -torch.inf)) & ~gone
        rank = scores.masked_fill(~first, -torch.inf).argsort(1, descending=True).argsort(1)
        fixed = first & (rank < self.fixed * first.sum(1, keepdim=True) - 0.5)

        def allowed(values: Tensor) -> Tensor:
            values = values.masked_fill(fixed, torch.inf).masked_fill(gone, -torch.inf)
            return self.sparsity.keep_mask(values) & ~gone

        mask = first.float()
        for iteration in range(self.iterations):
            gain = dense * ((dense - mask * dense) @ gram)
            mask.lerp_(allowed(gain).float(), 2 / (iteration + 2))
        found = allowed(mask + _TIE * scores / scores.max().clamp(min=torch.finfo().tiny))
        # Rounding may lose all that the iterations gained.
        before, after = (squared_error(gram, dense * ~own) for own in (first, found))
        return found if after < before else first

"""ADMM: choose the mask and the weights together."""

from typing import Any

import torch
from torch import Tensor, nn

from prunelit.activations import Gram, Statistic
from prunelit.errors import check_positive, check_whole
from prunelit.models.architecture import oriented_weight
from prunelit.pruners.least_squares import factorise, solve_on_support, squared_error, unit_gram
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.sparsity import Sparsity

_EVERY = 3  # iterations between two changes of the penalty


class ADMM(LinearPruner):
    """Choose the mask and the weights together, by the alternating direction method of multipliers.

    This is ALPS (Meng et al. 2024, arXiv:2406.07831), on the layer's reconstruction error (section
    3.1) with the Gram matrix H of the inputs, scaled to a diagonal of 1. An iteration is::

        W = (H + rho I)^-1 (H W_dense - V + rho D)
        D = W + V / rho, without its smallest entries
        V = V + rho (W - D)

    Every third iteration multiplies rho by 1.3, 1.2 or 1.1: the more weights entered or left the
    mask, the more (section 3.2). When none did, or after `iterations`, the weights of the mask are
    solved for (section 3.3). arXiv:2401.02938 has the same steps with a fixed rho.

    Args:
        sparsity: how many weights are removed, and among which they compete.
        damping: added to the diagonal of H, which is 1.
        penalty: rho of the first iterations.
        iterations: at most; an iteration costs one product of the weight and an (I, I) matrix, and
            every third one inverts such a matrix.
        options: `include`, `exclude`, `ratios`, `allocation` and `expert_tokens` of
            `LinearPruner`.

    Differs from the source: the weights of the mask are exact with up to 512 inputs; with more, the
    iterations end at a residual of 1e-4, where the paper takes ten. At most 100 iterations choose
    the mask, where the public code takes 300. The mask of the first iteration, that of the largest
    D, stays where the last one has a greater error.

    Example:
        >>> import torch
        >>> from prunelit.pruners import ADMM
        >>> from prunelit.sparsity import Unstructured
        >>> from prunelit.activations import Gram
        >>> statistic = Gram(2)
        >>> statistic.update(torch.tensor([[1.0, 3.0], [0.5, 1.0]]))
        >>> weight = torch.tensor([[2.0, -1.0], [4.0, 1.0]])
        >>> ADMM(Unstructured(0.5)).prune_weight(weight, statistic) == 0
        tensor([[ True, False],
                [False,  True]])
    """

    within = "matrix"

    def __init__(
        self,
        sparsity: Sparsity,
        *,
        damping: float = 0.01,
        penalty: float = 0.1,
        iterations: int = 100,
        **options: Any,
    ) -> None:
        super().__init__(sparsity, **options)
        check_positive("damping", damping)
        check_positive("penalty", penalty)
        check_whole("iterations", iterations, 1)
        self.damping = float(damping)
        self.penalty = float(penalty)
        self.iterations = iterations

    def statistic(self, linear: nn.Module) -> Statistic:
        weight = oriented_weight(linear)
        return Gram(weight.shape[1], weight.device)

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        assert isinstance(statistic, Gram)
        gram, scale = unit_gram(statistic, self.damping)
        dense = weight * scale  # weights of an input that is always 0 have no effect
        gone = weight == 0
        keep, sparse = self._alternate(gram, dense, gone)
        pruned = solve_on_support(gram, dense, keep, sparse)
        first = self._keep(dense, gone)
        if squared_error(gram, dense - pruned) > squared_error(gram, dense * ~first):
            keep, pruned = first, solve_on_support(gram, dense, first, dense)
        return torch.where(keep & (scale > 0), pruned / scale, 0.0)

    def _keep(self, target: Tensor, gone: Tensor) -> Tensor:
        """Keep the largest; weights of an earlier round are removed first, and stay removed."""
        return self.sparsity.keep_mask(target.abs().masked_fill(gone, -torch.inf)) & ~gone

    def _alternate(self, gram: Tensor, dense: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask and the weights D of the last iteration."""
        right, sparse, dual = dense @ gram, dense, torch.zeros_like(dense)
        penalty, inverse = self.penalty, _inverse(gram, self.penalty)
        keep = before = torch.zeros_like(gone)
        for iteration in range(1, self.iterations + 1):
            free = (right - dual + penalty * sparse) @ inverse
            target = free + dual / penalty
            keep = self._keep(target, gone)
            sparse = torch.where(keep, target, 0.0)
            dual = dual + penalty * (free - sparse)
            if iteration % _EVERY == 0:
                changed = int((keep != before).sum())
                if not changed:
                    break
                before = keep
                share = changed / max(1, int(keep.sum()))
                penalty *= 1.3 if share >= 0.1 else 1.2 if share >= 0.005 else 1.1
                inverse = _inverse(gram, penalty)
        return keep, sparse


def _inverse(gram: Tensor, penalty: float) -> Tensor:
    """Invert H + rho I, which is well-conditioned."""
    damped = gram.clone()
    damped.diagonal().add_(penalty)
    return torch.cholesky_inverse(factorise(damped))

"""SparseGPT: prune and update the other weights to compensate."""

from typing import Any

import torch
from torch import Tensor, nn

from prunelit.activations import Gram, Statistic
from prunelit.errors import InputError
from prunelit.models.architecture import oriented_weight
from prunelit.pruners.compensation import compensate, shared_factor
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.sparsity import (
    SemiStructured,
    Sparsity,
    Unstructured,
    count_removed,
    keep_highest,
    row_counts,
)


class SparseGPT(LinearPruner):
    """Prune by w^2 / diag(H^-1) and update the weights that stay (Frantar and Alistarh 2023).

    Algorithm 1 of arXiv:2301.00774; H is the damped Gram matrix of the inputs. Weights compete
    within `block_size` columns of a matrix (or within a row of these columns, or in N:M groups).
    The columns before them are pruned and compensated first.

    Args:
        sparsity: how many weights to remove, and among which they compete.
        damping: lambda of the paper, a share of the mean diagonal of H; it is raised if H is not
            positive definite.
        block_size: number of columns that are chosen together.
        options: `include`, `exclude`, `ratios`, `allocation` and `expert_tokens` of
            `LinearPruner`.

    Differs from the source: exactly the asked number of weights is removed; the public code removes
    one more in each column block. Maps that read the same input share one H and its factor.

    Example:
        >>> import torch
        >>> from prunelit.pruners import SparseGPT
        >>> from prunelit.sparsity import Unstructured
        >>> from prunelit.activations import Gram
        >>> statistic = Gram(2)
        >>> statistic.update(torch.tensor([[1.0, 3.0], [0.5, 1.0]]))
        >>> weight = torch.tensor([[2.0, -1.0], [4.0, 1.0]])
        >>> pruned = SparseGPT(Unstructured(0.5)).prune_weight(weight, statistic)
        >>> pruned == 0
        tensor([[ True, False],
                [ True, False]])
        >>> bool((pruned[:, 1] != weight[:, 1]).all())  # the weights that stay are updated
        True
    """

    within = "matrix"

    def __init__(
        self,
        sparsity: Sparsity,
        *,
        damping: float = 0.01,
        block_size: int = 128,
        **options: Any,
    ) -> None:
        super().__init__(sparsity, **options)
        if not isinstance(sparsity, Unstructured | SemiStructured):
            raise InputError(
                f"Expected `Unstructured` or `SemiStructured` sparsity but got "
                f"{type(sparsity).__name__}: SparseGPT chooses in blocks of columns."
            )
        group = sparsity.group if isinstance(sparsity, SemiStructured) else 1
        if damping <= 0 or not 1 <= block_size < 2**31 or block_size % group:
            raise InputError(
                f"Expected `damping` > 0 and `block_size` a multiple of {group} but got "
                f"{damping} and {block_size}."
            )
        self.damping = damping
        self.block_size = block_size

    def statistic(self, linear: nn.Module) -> Statistic:
        weight = oriented_weight(linear)
        return Gram(weight.shape[1], weight.device)

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        assert isinstance(statistic, Gram)
        factor, dead = shared_factor(statistic, self.damping)
        # Weights of an input that is always 0 have no effect.
        weight = weight.masked_fill(dead, 0.0)
        gone = (weight == 0).T
        sparsity = self.sparsity
        if isinstance(sparsity, SemiStructured):

            def choose(first: int, values: Tensor, saliency: Tensor) -> Tensor:
                # Updates also change weights of an earlier round; these are removed first.
                scores = saliency.masked_fill(gone[first : first + len(values)], -torch.inf)
                return sparsity.keep_mask(scores.T).T

            return compensate(weight, factor, choose, sparsity.group, self.block_size)
        assert isinstance(sparsity, Unstructured)
        choose = _ByColumnBlocks(sparsity, gone, self.block_size)
        return compensate(weight, factor, choose, self.block_size, self.block_size)


class _ByColumnBlocks:
    """Choose the weights to remove in each block of columns; all blocks sum to the asked number.

    Weights of an earlier round are removed first, even if they are unevenly spread over the blocks.

    Args:
        sparsity: sparsity of the matrix, or of each of its rows.
        gone: (I, O) bool, removed in an earlier round.
        block_size: number of columns of a block.
    """

    def __init__(self, sparsity: Unstructured, gone: Tensor, block_size: int) -> None:
        inputs, outputs = gone.shape
        self._inputs, self._gone = inputs, gone
        self._by_row = sparsity.within == "row"
        self._ratio, self._outputs = sparsity.ratio, outputs
        by_block = torch.stack([block.sum(0) for block in gone.split(block_size)])  # (blocks, O)
        if self._by_row:
            total = count_removed(sparsity.ratio, gone.numel())
            self._total = row_counts(total, outputs).to(gone.device)
        else:
            by_block = by_block.sum(1, keepdim=True)
            self._total = by_block.new_tensor([count_removed(sparsity.ratio, gone.numel())])
        self._own = by_block.unbind()
        # Number of weights of earlier rounds in later blocks.
        self._later = (by_block.flip(0).cumsum(0).flip(0) - by_block).unbind()
        self._block_size = block_size
        self._taken = torch.zeros_like(self._total)

    def __call__(self, first: int, values: Tensor, saliency: Tensor) -> Tensor:
        """(C, O) bool, True keeps; see `prunelit.pruners.compensation.Choose`."""
        end, block = first + len(values), first // self._block_size
        scores = saliency.masked_fill(self._gone[first:end], -torch.inf)
        if self._by_row:
            target = self._total * end // self._inputs
        else:
            target = self._total.new_tensor([count_removed(self._ratio, self._outputs * end)])
        target = torch.minimum(target, self._total - self._later[block])
        count = torch.maximum(target - self._taken, self._own[block])
        self._taken += count
        if self._by_row:
            rank = scores.argsort(dim=0, stable=True).argsort(dim=0)
            return rank >= count
        return keep_highest(scores.reshape(1, -1), scores.numel() - int(count)).view_as(scores)

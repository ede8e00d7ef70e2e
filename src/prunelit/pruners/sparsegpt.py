"""SparseGPT: pruning with compensation of what was removed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunelit.allocation import Allocation
from prunelit.errors import InputError
from prunelit.models.architecture import oriented_weight
from prunelit.obs import compensate, shared_factor
from prunelit.pruners.base import LinearPruner
from prunelit.sparsity import SemiStructured, Sparsity, Unstructured, removed
from prunelit.statistics import Gram, Statistic


class SparseGPT(LinearPruner):
    """Prune by w^2 / diag(H^-1) and update the weights that stay (Frantar and Alistarh 2023).

    arXiv:2301.00774, algorithm 1: H is the Gram matrix of the inputs with damping. Weights compete
    within `block_size` columns of a matrix (or within a row of these, or in N:M groups), when the
    columns before them have been pruned and compensated.

    Args:
        sparsity: how many weights go, and within which groups they compete.
        include: shell patterns of module names inside a block, such as `mlp.*`.
        exclude: patterns taken out again.
        ratios: ratios of their own for modules whose name matches a pattern.
        allocation: how the ratio is spread over the blocks; None is evenly.
        damping: lambda, as a share of the mean diagonal of H; raised where H needs more.
        block_size: columns that are chosen together.

    Differs from the source: exactly the asked number of weights goes; the public code removes one
    more in each column block. Maps that read the same input share one H and its factor.
    """

    within = "matrix"

    def __init__(
        self,
        sparsity: Sparsity,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        ratios: dict[str, float] | None = None,
        allocation: Allocation | None = None,
        damping: float = 0.01,
        block_size: int = 128,
    ) -> None:
        super().__init__(sparsity, include, exclude, ratios, allocation)
        if not isinstance(sparsity, Unstructured | SemiStructured):
            raise InputError(
                f"Expected `Unstructured` or `SemiStructured` sparsity but got "
                f"{type(sparsity).__name__}: SparseGPT chooses in blocks of columns."
            )
        group = sparsity.group if isinstance(sparsity, SemiStructured) else 1
        if damping <= 0 or block_size < 1 or block_size % group:
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
        # An input that is always 0 needs no weight.
        weight = weight.masked_fill(dead, 0.0)
        gone = (weight == 0).T
        sparsity, rows = self.sparsity, weight.shape[0]

        def choose(first: int, values: Tensor, saliency: Tensor) -> Tensor:
            # Updates reach weights that were removed before; these go first.
            part = slice(first, first + len(values))
            scores = saliency.masked_fill(gone[part], -torch.inf)
            if isinstance(sparsity, SemiStructured):
                return sparsity.keep_mask(scores.T).T
            assert isinstance(sparsity, Unstructured)
            # Column blocks add up to what the whole matrix loses.
            before, after = (removed(sparsity.ratio, rows * end) for end in (first, part.stop))
            share = (after - before) / (rows * len(values))
            chosen = sparsity.with_ratio(share)
            if sparsity.within == "matrix":  # whose rows and columns are all one
                return chosen.keep_mask(scores)
            return chosen.keep_mask(scores.T).T

        chunk = sparsity.group if isinstance(sparsity, SemiStructured) else self.block_size
        return compensate(weight, factor, choose, chunk, self.block_size)

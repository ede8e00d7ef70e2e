"""Weight update of SparseGPT with the mask of another method."""

import copy
from collections.abc import Iterable

from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.activations import Gram, Statistic, StatisticPair
from prunelit.errors import InputError
from prunelit.models.architecture import oriented_weight
from prunelit.pruners.base import Probe
from prunelit.pruners.compensation import compensate, shared_factor
from prunelit.pruners.linear_pruner import LinearPruner


class OBSUpdate(LinearPruner):
    """Remove the weights that `pruner` chooses, then update the others as SparseGPT does.

    This is the ablation of arXiv:2306.11695, section 5. The pruner chooses before any update.

    Args:
        pruner: the method that chooses, with its sparsity, patterns and allocation.
        damping: lambda of SparseGPT, a share of the mean diagonal of the Hessian.
        block_size: number of columns that are updated one by one, before one product updates the
            rest of the matrix.

    Example:
        >>> import torch
        >>> from prunelit.pruners import Magnitude, OBSUpdate
        >>> from prunelit.sparsity import Unstructured
        >>> from prunelit.activations import Gram
        >>> statistic = Gram(2)
        >>> statistic.update(torch.tensor([[1.0, 3.0], [0.5, 1.0]]))
        >>> pruner = OBSUpdate(Magnitude(Unstructured(0.5)))
        >>> pruner.prune_weight(torch.tensor([[2.0, -1.0], [4.0, 1.0]]), statistic) == 0
        tensor([[False,  True],
                [False,  True]])
    """

    def __init__(self, pruner: LinearPruner, damping: float = 0.01, block_size: int = 128) -> None:
        super().__init__(
            pruner.sparsity,
            pruner.include,
            pruner.exclude,
            pruner.ratios,
            pruner.allocation,
            pruner.expert_tokens,
        )
        if not pruner.sparsifies:
            raise InputError(
                f"Expected a `pruner` that removes weights but got {type(pruner).__name__}."
            )
        if pruner.reorders:
            raise InputError(
                f"Expected a `pruner` that leaves channels in their order but got "
                f"{type(pruner).__name__} with `permute`: set it to false."
            )
        if pruner.replays:
            raise InputError(
                f"Expected a `pruner` that chooses by statistics but got {type(pruner).__name__}, "
                "which runs the block and updates the weights itself: use it alone."
            )
        if damping <= 0 or block_size < 1:
            raise InputError(
                f"Expected `damping` > 0 and `block_size` of at least 1 but got {damping} and "
                f"{block_size}."
            )
        self.pruner = pruner
        self.damping = damping
        self.block_size = block_size
        self.within = pruner.within
        self.model_wide = pruner.model_wide

    def check(self, model: PreTrainedModel) -> None:
        self.pruner.check(model)

    def look(self, model: PreTrainedModel) -> Iterable[dict[str, Probe]]:
        return self.pruner.look(model)

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        again = self.pruner.decide(model, probes)
        self._plan = self.pruner._plan
        return again

    def scale(self, fraction: float) -> "OBSUpdate":
        return OBSUpdate(self.pruner.scale(fraction), self.damping, self.block_size)

    def statistic(self, linear: nn.Module) -> Statistic:
        weight = oriented_weight(linear)
        gram = Gram(weight.shape[1], weight.device)
        own = self.pruner.statistic(linear)
        return gram if own is None else StatisticPair(gram, own)

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        gram, own = statistic, statistic
        if isinstance(statistic, StatisticPair):
            gram, own = statistic.first, statistic.second
        assert isinstance(gram, Gram)
        factor, _ = shared_factor(gram, self.damping)
        criterion = copy.copy(self.pruner)
        criterion.sparsity = self.sparsity
        keep = (criterion.prune_weight(weight, own) != 0).T

        def choose(first: int, values: Tensor, saliency: Tensor) -> Tensor:
            return keep[first : first + len(values)]

        return compensate(weight, factor, choose, self.block_size, self.block_size)

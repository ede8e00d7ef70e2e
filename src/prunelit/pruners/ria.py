"""RIA: relative importance and activations."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.activations import Probe, SquaredNorm, Statistic
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.models.neurons import find_neurons, find_tied, reorder_
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.pruners.permutation import Reordered, find_order
from prunelit.pruners.scores import relative_scores
from prunelit.sparsity import SemiStructured, Sparsity


class RIA(LinearPruner):
    """Prune by relative importance and activations (Zhang et al. 2024, OpenReview Tr0lPx9woF).

    The score of weight (o, i) is (|W_oi| / sum over its row + |W_oi| / sum over its column) times
    the input norm ||x_i|| to the power `power`. Weights compete within the whole matrix, as in the
    public code; `within="row"` is its option `--per_outneuron`.

    Args:
        sparsity: how many weights are removed, and among which they compete.
        power: exponent of the input norm, a of the paper.
        permute: with N:M sparsity, reorder the neurons of each MLP first, so that the groups of its
            last map keep higher scores. The reordered model computes the same.
        options: `include`, `exclude`, `ratios`, `allocation` and `expert_tokens` of
            `LinearPruner`.

    Differs from the source: the paper permutes the inputs of every map, and gathers activations in
    the new order when the model runs. No stock model does that, and its weights would not be N:M as
    they are stored. Only neurons have an order that is free: rows of the maps before them move
    along. So other maps, such as those that read the residual stream, keep their order.

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
        permute: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(sparsity, **options)
        if not 0 <= power < math.inf:
            raise InputError(f"Expected finite `power` >= 0 but got {power}.")
        groups = isinstance(sparsity, SemiStructured) and sparsity.keep < sparsity.group
        if permute and not groups:
            raise InputError(
                "Expected `SemiStructured` sparsity that removes weights with `permute` but got "
                f"{type(sparsity).__name__}: an order makes a difference to groups only."
            )
        self.power = power
        self.permute = permute
        self.reorders = permute

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        if not self.permute:
            return
        found = False
        for block in decoder_blocks(model)[1]:
            neurons, targets = find_neurons(block), self.targets(block)
            if (name := find_tied(block, neurons)) is not None:
                raise InputError(
                    f"The neurons of {type(block).__name__} cannot be reordered: beside the linear "
                    f"maps, {name} has an entry for each of them too. Set `permute` to false."
                )
            found |= any(own.output in targets for own in neurons)
        if not found:
            raise InputError(
                f"`permute` reorders the neurons of MLPs, and no map of {type(model).__name__} "
                "that reads them is pruned: set it to false, or change the patterns."
            )

    def scale(self, fraction: float) -> LinearPruner:
        if self.permute and fraction != 1:
            raise InputError(
                "`RIA` with `permute` cannot prune in rounds: a later round would move the zeros "
                "of an earlier one. Set one round."
            )
        return super().scale(fraction)

    def statistic(self, linear: nn.Module) -> Statistic:
        weight = oriented_weight(linear)
        return SquaredNorm(weight.shape[1], weight.device)

    def arrange(self, block: nn.Module, probes: Mapping[str, Probe]) -> Mapping[str, Probe]:
        if not self.permute:
            return probes
        assert isinstance(self.sparsity, SemiStructured)
        linears, targets, arranged = linear_modules(block), self.targets(block), dict(probes)
        for neurons in find_neurons(block):
            if (name := neurons.output) not in targets:
                continue
            statistic = probes[name].statistic
            scores = self._scores(oriented_weight(linears[name]).float(), statistic)
            order = find_order(scores, self.sparsity.keep, self.sparsity.group)
            reorder_(block, neurons, order)
            arranged[name] = Probe(Reordered(statistic, order))
        return arranged

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        return self.remove_lowest(weight, self._scores(weight, statistic))

    def _scores(self, weight: Tensor, statistic: Statistic) -> Tensor:
        square = statistic.value
        if not square.max().pow(self.power / 2).isfinite():
            raise InputError(
                f"The input norms to the power {self.power:g} are more than float32 can hold: set "
                "a smaller `power`, such as 0.5."
            )
        return relative_scores(weight, square, self.power)

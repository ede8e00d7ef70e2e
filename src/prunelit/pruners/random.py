"""Random pruning, the baseline that every method has to beat."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.activations import Statistic
from prunelit.errors import check_seed
from prunelit.pruners.base import Probe
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.sparsity import Sparsity


class Random(LinearPruner):
    """Prune weights chosen at random. Reads no data.

    Args:
        sparsity: how many weights to remove, and among which they compete.
        seed: seed of the random numbers; the same on every rank and in every round.
        options: `include`, `exclude`, `ratios`, `allocation` and `expert_tokens` of
            `LinearPruner`.

    Example:
        >>> import torch
        >>> from prunelit.pruners import Random
        >>> from prunelit.sparsity import Unstructured
        >>> pruned = Random(Unstructured(0.25), seed=1).prune_weight(torch.ones(4, 4), None)
        >>> int((pruned == 0).sum())
        4
    """

    within = "matrix"

    def __init__(
        self,
        sparsity: Sparsity,
        *,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(sparsity, **options)
        check_seed("seed", seed)
        self.seed = seed
        self._generator = torch.Generator()

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        self._generator.manual_seed(self.seed)
        return super().decide(model, probes)

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        # On the CPU, so that the numbers do not depend on the device.
        scores = torch.rand(weight.shape, generator=self._generator)
        return self.remove_lowest(weight, scores.to(weight.device))

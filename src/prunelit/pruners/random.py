"""Random pruning, the floor that every method has to beat."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.pruners.base import LinearPruner, Probe
from prunelit.sparsity import Sparsity
from prunelit.statistics import Statistic


class Random(LinearPruner):
    """Prune weights drawn at random. Reads no data.

    Args:
        sparsity: how many weights to remove, and among which they compete.
        seed: of the draw; the same on every rank and in every round.
        options: `include`, `exclude`, `ratios` and `allocation` of `LinearPruner`.
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
        self.seed = seed
        self._generator = torch.Generator()

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        self._generator.manual_seed(self.seed)
        return super().decide(model, probes)

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        # Drawn on the CPU, where the numbers do not depend on the device.
        scores = torch.rand(weight.shape, generator=self._generator)
        return self.remove_lowest(weight, scores.to(weight.device))

"""Random pruning, the floor that every method has to beat."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.allocation import Allocation
from prunelit.pruners.base import LinearPruner, Probe
from prunelit.sparsity import Sparsity
from prunelit.statistics import Statistic


class Random(LinearPruner):
    """Prune weights drawn at random. Reads no data.

    Args:
        sparsity: how many weights go, and within which groups they compete.
        include: shell patterns of module names inside a block, such as `mlp.*`.
        exclude: patterns taken out again.
        ratios: ratios of their own for modules whose name matches a pattern.
        allocation: how the ratio is spread over the blocks; None is evenly.
        seed: of the draw; the same on every rank and in every round.
    """

    within = "matrix"

    def __init__(
        self,
        sparsity: Sparsity,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        ratios: dict[str, float] | None = None,
        allocation: Allocation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(sparsity, include, exclude, ratios, allocation)
        self.seed = seed
        self._generator = torch.Generator()

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        self._generator.manual_seed(self.seed)
        return super().decide(model, probes)

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        # Drawn on the CPU, where the numbers do not depend on the device.
        scores = torch.rand(weight.shape, generator=self._generator)
        return self.remove_lowest(weight, scores.to(weight.device))

"""How an asked ratio is spread over the blocks of a model."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from prunelit.errors import InputError
from prunelit.sparsity import Sparsity
from prunelit.statistics import Observe


class Allocation(ABC):
    """Which blocks lose more than others."""

    @abstractmethod
    def offsets(self, blocks: list[dict[str, nn.Module]], observe: Observe) -> list[float]:
        """What to add to the ratio of each block.

        Args:
            blocks: the linear maps that are pruned, by name inside their block.
            observe: runs the calibration tokens once through all blocks, see `Pruner.start`.

        Returns:
            One number a block; a common shift that keeps the asked total is found afterwards.
        """


def allocate(
    sparsity: Sparsity,
    blocks: list[dict[str, nn.Module]],
    ratios: dict[str, float] | None,
    allocation: Allocation | None,
    observe: Observe,
) -> dict[nn.Module, Sparsity]:
    """The sparsity of each linear map."""
    return {}

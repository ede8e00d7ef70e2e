"""Statistics of activations: sums over tokens, so that 1 rank and N ranks give the same masks."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Statistic(ABC):
    """A sum over calibration tokens, one instance for each distinct input of a block."""

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Add tokens.

        Args:
            x: (N, I), the real tokens of one batch (padding already removed), any float type.
        """

    @abstractmethod
    def all_reduce_(self) -> None:
        """Sum over ranks, in place; does nothing where there is one process."""

    @property
    @abstractmethod
    def value(self) -> Tensor:
        """The statistic, float32.

        Raises:
            ValueError: if no token was seen.
        """


@dataclass
class Probe:
    """What to observe at one submodule of a block.

    Args:
        statistic: fed with the real tokens of every calibration batch, (N, channels).
        at: whether it reads the submodule's first input or its output.
    """

    statistic: Statistic
    at: Literal["input", "output"] = "input"


# Runs the calibration tokens once through all blocks as they are. Takes what to watch in a block,
# gives the filled probes block by block.
Observe = Callable[[Callable[[nn.Module], dict[str, Probe]]], list[dict[str, Probe]]]


class SquaredNorm(Statistic):
    """Mean squared activation per channel.

    Args:
        channels: I, the number of input channels.
        device: where to accumulate.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        # Last entry: the number of tokens, so that ranks exchange a single tensor.
        self._sums = torch.zeros(channels + 1, dtype=torch.float64, device=device)

    def update(self, x: Tensor) -> None:
        self._sums[:-1] += x.float().square().sum(0, dtype=torch.float64)
        self._sums[-1] += x.shape[0]

    def all_reduce_(self) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._sums)

    @property
    def value(self) -> Tensor:
        """(I,), mean over tokens of the squared input, activation units squared."""
        count = self._sums[-1]
        if count == 0:
            raise ValueError("Expected at least one calibration token but got none.")
        return (self._sums[:-1] / count).float()

"""Statistics of activations: sums over tokens, so that 1 rank and N ranks give the same masks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "Gram",
    "MeanDistance",
    "Probe",
    "SquaredNorm",
    "Statistic",
    "StatisticPair",
]

_TILE = 256


class Statistic(ABC):
    """A sum over calibration tokens, one instance for each distinct input of a block."""

    @abstractmethod
    def update(self, *x: Tensor) -> None:
        """Add tokens.

        Args:
            x: (N, I), the real tokens of one batch (padding already removed), any float type;
                two of them, before and after, from a probe at `residual`.
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
        at: whether it reads the submodule's first input or its output; or, at `residual`, the
            residual stream before and after a whole sublayer (`attention`, `mlp`) or `block`,
            each (N, D); these three then stand for the submodule's name.
    """

    statistic: Statistic
    at: Literal["input", "output", "residual"] = "input"


class SquaredNorm(Statistic):
    """Mean squared activation per channel.

    Args:
        channels: I, the number of input channels.
        device: where to accumulate.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        # Last entry: the number of tokens, so that ranks exchange a single tensor.
        self._sums = torch.zeros(channels + 1, dtype=torch.float64, device=device)

    def update(self, x: Tensor) -> None:  # type: ignore[override]
        for part in x.split(_TILE):  # whose float64 copy stays in a processor's cache
            self._sums[:-1] += part.double().square().sum(0)
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


class Gram(Statistic):
    """Mean outer product of the input, x x^T.

    Args:
        channels: I, the number of input channels.
        device: where to accumulate.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        # In float64, as sums over batches must not depend on how ranks share them.
        self._sum = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        self._count = torch.zeros(1, dtype=torch.float64, device=device)
        # What was computed of it, for maps that share it.
        self.memo: dict[float, tuple[Tensor, Tensor]] = {}

    def update(self, x: Tensor) -> None:  # type: ignore[override]
        x = x.float()
        # The product is symmetric: above the diagonal only, in tiles that fill a matrix kernel.
        for start in range(0, x.shape[1], _TILE):
            part = slice(start, start + _TILE)
            self._sum[part, start:] += x[:, part].T @ x[:, start:]
        self._count += x.shape[0]

    def all_reduce_(self) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._sum)
            dist.all_reduce(self._count)

    @property
    def value(self) -> Tensor:
        """(I, I), symmetric, activation units squared."""
        if self._count == 0:
            raise ValueError("Expected at least one calibration token but got none.")
        size = len(self._sum)
        value = torch.empty(size, size, device=self._sum.device)
        # In tiles, since a float64 copy would double what is held.
        for start in range(0, size, _TILE):
            part, after = slice(start, start + _TILE), slice(start + _TILE, None)
            upper = (self._sum[part, part] / self._count).float().triu()
            value[part, part] = upper + upper.triu(1).T
            value[part, after] = (self._sum[part, after] / self._count).float()
            value[after, part] = value[part, after].T
        return value


class MeanDistance(Statistic):
    """Mean distance between the residual stream before and after a part of the model.

    Args:
        kind: `cosine`, 1 - cos; or `angular`, arccos(cos) / pi. Both are 0 for no change.
        device: where to accumulate.
    """

    def __init__(
        self, kind: Literal["cosine", "angular"] = "cosine", device: torch.device | str = "cpu"
    ) -> None:
        self.kind = kind
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # distances, tokens

    def update(self, before: Tensor, after: Tensor) -> None:  # type: ignore[override]
        cosine = torch.cosine_similarity(before.double(), after.double(), dim=-1).clamp(-1, 1)
        distance = 1 - cosine if self.kind == "cosine" else cosine.arccos() / torch.pi
        self._sums[0] += distance.sum()
        self._sums[1] += len(distance)

    def all_reduce_(self) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._sums)

    @property
    def value(self) -> Tensor:
        """Scalar."""
        if self._sums[1] == 0:
            raise ValueError("Expected at least one calibration token but got none.")
        return (self._sums[0] / self._sums[1]).float()


class StatisticPair(Statistic):
    """Two statistics of one input.

    Args:
        first: any.
        second: any.
    """

    def __init__(self, first: Statistic, second: Statistic) -> None:
        self.first = first
        self.second = second

    def update(self, x: Tensor) -> None:  # type: ignore[override]
        self.first.update(x)
        self.second.update(x)

    def all_reduce_(self) -> None:
        self.first.all_reduce_()
        self.second.all_reduce_()

    @property
    def value(self) -> Tensor:
        """That of the first."""
        return self.first.value

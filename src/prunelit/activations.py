"""Statistics of activations: sums over tokens, so that 1 rank and N ranks give the same masks."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "Gram",
    "MeanDistance",
    "Moments",
    "Probe",
    "SquaredNorm",
    "Statistic",
    "StatisticPair",
]

_TILE = 256
_Sums = TypeVar("_Sums", bound="TokenSums")


def sum_ranks_(*values: Tensor) -> None:
    """Sum tensors over the ranks, in place; a process without a group has them summed already."""
    if dist.is_available() and dist.is_initialized():
        for value in values:
            dist.all_reduce(value)


class Statistic(ABC):
    """A sum over calibration tokens; each distinct input of a block has one.

    Example:
        >>> import torch
        >>> from prunelit.activations import Statistic
        >>> class Largest(Statistic):
        ...     def __init__(self):
        ...         self._largest = torch.zeros(())
        ...     def update(self, x):
        ...         self._largest = torch.maximum(self._largest, x.abs().max())
        ...     def all_reduce_(self):
        ...         if torch.distributed.is_initialized():
        ...             torch.distributed.all_reduce(self._largest, torch.distributed.ReduceOp.MAX)
        ...     @property
        ...     def value(self):
        ...         return self._largest
        >>> statistic = Largest()
        >>> statistic.update(torch.tensor([[1.0, -3.0]]))
        >>> statistic.value
        tensor(3.)
    """

    @abstractmethod
    def update(self, *x: Any) -> None:
        """Add tokens.

        Args:
            x: (N, I), the tokens of one batch without padding, any float type; a probe at
                `residual` or `expert` gives more, see `Probe`.
        """

    @abstractmethod
    def all_reduce_(self) -> None:
        """Sum over ranks, in place; with one process, do nothing."""

    def add_(self, other: "Statistic") -> None:
        """Add the tokens of another statistic of this kind, in place.

        Experts of a mixture that read few tokens need it; other models do not.

        Raises:
            NotImplementedError: if this kind of statistic cannot do it.
        """
        raise NotImplementedError

    def select(self, columns: Tensor) -> "Statistic":
        """Copy the statistic with a part of its channels.

        A weight method needs it in a `Sequence`, where channels may be gone.

        Args:
            columns: (I,) bool, True for those to keep.

        Raises:
            NotImplementedError: if this kind of statistic cannot do it.
        """
        raise NotImplementedError

    @property
    @abstractmethod
    def value(self) -> Tensor:
        """Result over all tokens so far, float32.

        Raises:
            ValueError: if there is no token.
        """


@dataclass
class Probe:
    """A statistic and the place in a block where it reads.

    Args:
        statistic: gets the tokens of every calibration batch without padding, (N, channels).
        at: `input` reads the first input of a submodule, `output` its output. `residual` reads the
            residual stream before and after a part of the block, each (N, D); the name of the
            probe is then `attention`, `mlp` or `block` instead of the name of a submodule.
            `expert` reads each of the fused experts of a mixture, one after the other: its number,
            the shares (M,) that the router gives it for the tokens that reach it, and its outputs
            (M, D) for them.
        tokens: number of calibration tokens, without padding, that an expert of a mixture has read;
            prunelit counts them.

    Example:
        >>> from prunelit.activations import MeanDistance, Probe, SquaredNorm
        >>> probes = {
        ...     "mlp.down_proj": Probe(SquaredNorm(32)),
        ...     "attention": Probe(MeanDistance("cosine"), at="residual"),
        ... }
        >>> probes["mlp.down_proj"].at
        'input'
    """

    statistic: Statistic
    at: Literal["input", "output", "residual", "expert"] = "input"
    tokens: int = 0


class TokenSums(Statistic):
    """Sums over tokens, with the number of tokens behind them: ranks exchange a single tensor.

    Args:
        sizes: of the sums; the last one gets one more, for the number of tokens.
        device: device of the sums.
    """

    def __init__(self, *sizes: int, device: torch.device | str = "cpu") -> None:
        *rows, last = sizes
        self._sums = torch.zeros(*rows, last + 1, dtype=torch.float64, device=device)

    def all_reduce_(self) -> None:
        sum_ranks_(self._sums)

    def add_(self, other: "TokenSums") -> None:  # type: ignore[override]
        self._sums += other._sums

    def select(self: _Sums, columns: Tensor) -> _Sums:
        other = copy.copy(self)
        other._sums = self._sums[..., torch.cat([columns, columns.new_ones(1)])]
        return other

    def means(self) -> Tensor:
        """Divide the sums by the number of tokens, float64.

        Raises:
            ValueError: if there is no token.
        """
        count = self._sums[..., -1:]
        if not count.all():
            raise ValueError("Expected at least one calibration token but got none.")
        return self._sums[..., :-1] / count


class SquaredNorm(TokenSums):
    """Mean squared activation of each channel.

    Args:
        channels: I, the number of input channels.
        device: device of the sums.

    Example:
        >>> import torch
        >>> from prunelit.activations import SquaredNorm
        >>> statistic = SquaredNorm(2)
        >>> statistic.update(torch.tensor([[1.0, 3.0], [1.0, 1.0]]))
        >>> statistic.value
        tensor([1., 5.])
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        super().__init__(channels, device=device)

    def update(self, x: Tensor) -> None:  # type: ignore[override]
        for part in x.split(_TILE):  # the float64 copy of a part fits the cache of a CPU
            self._sums[:-1] += part.double().square().sum(0)
        self._sums[-1] += x.shape[0]

    @property
    def value(self) -> Tensor:
        """(I,), mean over tokens of the squared input, activation units squared."""
        return self.means().float()


class Moments(TokenSums):
    """Mean and variance of each channel.

    Args:
        channels: I, the number of input channels.
        device: device of the sums.

    Example:
        >>> import torch
        >>> from prunelit.activations import Moments
        >>> statistic = Moments(2)
        >>> statistic.update(torch.tensor([[1.0, 3.0], [1.0, 1.0]]))
        >>> statistic.value
        tensor([[1., 2.],
                [0., 1.]])
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        super().__init__(2, channels, device=device)

    def update(self, x: Tensor) -> None:  # type: ignore[override]
        for part in x.split(_TILE):
            part = part.double()
            self._sums[0, :-1] += part.sum(0)
            self._sums[1, :-1] += part.square().sum(0)
        self._sums[:, -1] += x.shape[0]

    @property
    def value(self) -> Tensor:
        """(2, I), mean over tokens, in activation units, and variance, in their squares."""
        mean, square = self.means().unbind()
        return torch.stack([mean, (square - mean.square()).clamp(min=0)]).float()


class Gram(Statistic):
    """Mean outer product of the input, x x^T.

    Args:
        channels: I, the number of input channels.
        device: device of the sums.

    Example:
        >>> import torch
        >>> from prunelit.activations import Gram
        >>> statistic = Gram(2)
        >>> statistic.update(torch.tensor([[1.0, 3.0], [1.0, 1.0]]))
        >>> statistic.value
        tensor([[1., 2.],
                [2., 5.]])
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        # In float64, so that the sum does not depend on the batches that each rank has. It takes no
        # memory before there are tokens: a check builds statistics of all blocks.
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self._sum = zero.expand(channels, channels)
        self._count = torch.zeros(1, dtype=torch.float64, device=device)
        # Results computed from it, for the maps that share it.
        self.memo: dict[tuple[str, float], tuple[Tensor, Tensor]] = {}

    def update(self, x: Tensor) -> None:  # type: ignore[override]
        x, self._sum = x.float(), self._sum.contiguous()
        # The product is symmetric: compute the upper triangle, in tiles.
        for start in range(0, x.shape[1], _TILE):
            part = slice(start, start + _TILE)
            self._sum[part, start:] += x[:, part].T @ x[:, start:]
        self._count += x.shape[0]

    def all_reduce_(self) -> None:
        self._sum = self._sum.contiguous()
        sum_ranks_(self._sum, self._count)

    def add_(self, other: "Gram") -> None:  # type: ignore[override]
        self._sum = self._sum + other._sum
        self._count += other._count
        self.memo.clear()

    def select(self, columns: Tensor) -> "Gram":
        other = Gram(0, self._sum.device)
        other._sum, other._count = self._sum[columns][:, columns], self._count
        return other

    @property
    def value(self) -> Tensor:
        """(I, I), symmetric, activation units squared."""
        if self._count == 0:
            raise ValueError("Expected at least one calibration token but got none.")
        size = len(self._sum)
        value = torch.empty(size, size, device=self._sum.device)
        # In tiles, since a float64 copy of all would double the memory.
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
        device: device of the sums.

    Example:
        >>> import torch
        >>> from prunelit.activations import MeanDistance
        >>> statistic = MeanDistance("cosine")
        >>> statistic.update(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        >>> statistic.value
        tensor(1.)
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
        sum_ranks_(self._sums)

    @property
    def value(self) -> Tensor:
        """Scalar."""
        if self._sums[1] == 0:
            raise ValueError("Expected at least one calibration token but got none.")
        return (self._sums[0] / self._sums[1]).float()


class StatisticPair(Statistic):
    """Two statistics of one input.

    Args:
        first: gives `value`.
        second: gets the same tokens.

    Example:
        >>> import torch
        >>> from prunelit.activations import Gram, SquaredNorm, StatisticPair
        >>> pair = StatisticPair(Gram(2), SquaredNorm(2))
        >>> pair.update(torch.tensor([[1.0, 3.0]]))
        >>> pair.second.value
        tensor([1., 9.])
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

    def add_(self, other: "StatisticPair") -> None:  # type: ignore[override]
        self.first.add_(other.first)
        self.second.add_(other.second)

    def select(self, columns: Tensor) -> "StatisticPair":
        return StatisticPair(self.first.select(columns), self.second.select(columns))

    @property
    def value(self) -> Tensor:
        """Value of the first statistic."""
        return self.first.value

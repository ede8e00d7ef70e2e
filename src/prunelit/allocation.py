"""How an asked ratio is spread over the blocks of a model."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from prunelit.errors import InputError, near_names
from prunelit.models.architecture import oriented_weight
from prunelit.sparsity import Sparsity, Unstructured, count_removed
from prunelit.statistics import Probe, SquaredNorm

__all__ = ["OWL", "Allocation", "LinearDepth"]

Linears = dict[str, nn.Module]


class Allocation(ABC):
    """Which blocks lose more than others."""

    def look(self, blocks: list[Linears]) -> Iterable[dict[str, Probe]]:
        """Give the probes of a pass over the whole model, as `Pruner.look` does; mostly none.

        Args:
            blocks: the linear maps that are pruned, by name inside their block.
        """
        return ()

    @abstractmethod
    def offsets(self, blocks: list[Linears], probes: list[dict[str, Probe]]) -> list[float]:
        """Compute a number to add to the ratio of each block.

        Args:
            blocks: the linear maps that are pruned, by name inside their block.
            probes: the probes of `look`, filled; empty if it gave nothing.

        Returns:
            One number a block. They count up to a common shift, which `allocate` finds so that the
            asked total is kept.
        """


class LinearDepth(Allocation):
    """A ratio that grows linearly with depth.

    Args:
        spread: the last block gets the mean ratio plus `spread`, the first minus `spread`; a
            negative one prunes the first blocks most.
    """

    def __init__(self, spread: float = 0.1) -> None:
        self.spread = spread

    def offsets(self, blocks: list[Linears], probes: list[dict[str, Probe]]) -> list[float]:
        return np.linspace(-self.spread, self.spread, len(blocks)).tolist()


class OWL(Allocation):
    """Outlier-weighted layerwise sparsity (Yin et al. 2024, arXiv:2310.05175, s. 3).

    A block's outliers are the weights whose Wanda score |W_oi| * ||x_i|| exceeds `outlier` times
    the mean score of the block. Blocks with a greater share of outliers keep more. Costs one more
    pass over the calibration tokens, through the blocks as they are before pruning.

    Args:
        outlier: M of the paper, how many times the mean score makes an outlier.
        spread: lambda of the paper, half the range between the highest and the lowest ratio.
    """

    def __init__(self, outlier: float = 5.0, spread: float = 0.08) -> None:
        if outlier <= 0 or spread < 0:
            raise InputError(
                f"Expected `outlier` > 0 and `spread` >= 0 but got {outlier} and {spread}."
            )
        self.outlier = outlier
        self.spread = spread

    def look(self, blocks: list[Linears]) -> Iterable[dict[str, Probe]]:
        for linears in blocks:
            weights = {name: oriented_weight(linear) for name, linear in linears.items()}
            yield {
                name: Probe(SquaredNorm(weight.shape[1], weight.device))
                for name, weight in weights.items()
            }

    def offsets(self, blocks: list[Linears], probes: list[dict[str, Probe]]) -> list[float]:
        shares = [
            self._outliers(linears, filled) for linears, filled in zip(blocks, probes, strict=True)
        ]
        lowest, highest = min(shares), max(shares)
        if lowest == highest:
            return [0.0] * len(shares)
        # Densities lie in a range of 2 * spread; the common shift puts their mean where it belongs.
        return [-2 * self.spread * (s - lowest) / (highest - lowest) for s in shares]

    def _outliers(self, linears: Linears, probes: dict[str, Probe]) -> float:
        def scores(name: str) -> Tensor:
            weight = oriented_weight(linears[name]).float()
            # A block that waits elsewhere is back there by now.
            return weight.abs() * probes[name].statistic.value.sqrt().to(weight.device)

        size = sum(oriented_weight(linear).numel() for linear in linears.values())
        mean = sum(float(scores(name).sum(dtype=torch.float64)) for name in linears) / size
        return sum(int((scores(name) > self.outlier * mean).sum()) for name in linears) / size


def check_allocation(
    sparsity: Sparsity,
    blocks: list[Linears],
    ratios: dict[str, float] | None,
    allocation: Allocation | None,
) -> None:
    """Refuse what cannot be spread.

    Args:
        sparsity: what was asked for.
        blocks: the linear maps that are pruned, by name inside their block.
        ratios: ratios of their own for names that match a pattern.
        allocation: how blocks differ.

    Raises:
        InputError: if `sparsity` has no ratio to spread, or a pattern or a ratio cannot be used.
    """
    if not ratios and allocation is None:
        return
    if not isinstance(sparsity, Unstructured):
        raise InputError(
            f"Expected `Unstructured` sparsity with `ratios` or `allocation` but got "
            f"{type(sparsity).__name__}, whose ratio is fixed."
        )
    names = list(dict.fromkeys(name for linears in blocks for name in linears))
    for pattern, ratio in (ratios or {}).items():
        if not 0 <= ratio < 1:
            raise InputError(f"Expected the ratio of {pattern!r} in [0, 1) but got {ratio}.")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"The pattern {pattern!r} of `ratios` matches no pruned module; near names: "
                f"{near_names(pattern, names)}."
            )


def allocate(
    sparsity: Sparsity,
    blocks: list[Linears],
    ratios: dict[str, float] | None,
    allocation: Allocation | None,
    probes: list[dict[str, Probe]],
) -> dict[nn.Module, Sparsity]:
    """The sparsity of each linear map.

    Each map's real-valued share is its own ratio plus its block's offset plus a shift that all
    share, kept between what is 0 in it already and 1; the shift is the one that gives the asked
    total. Whole numbers follow by largest remainder, so the total is exact and no map is off by
    more than one weight.

    Args:
        sparsity: what was asked for.
        blocks: the linear maps that are pruned, by name inside their block.
        ratios: ratios of their own for names that match a pattern; the first match counts.
        allocation: how blocks differ; None is not at all.
        probes: the probes of the allocation's `look`, filled.
    """
    if not ratios and allocation is None:
        return {}
    assert isinstance(sparsity, Unstructured)
    offsets = [0.0] * len(blocks) if allocation is None else allocation.offsets(blocks, probes)
    maps = [
        (linear, _base(name, ratios or {}, sparsity.ratio), offset)
        for linears, offset in zip(blocks, offsets, strict=True)
        for name, linear in linears.items()
    ]
    sizes = np.array([oriented_weight(linear).numel() for linear, _, _ in maps])
    base = np.array([ratio for _, ratio, _ in maps])
    gone = [
        size - int(oriented_weight(m).count_nonzero())
        for size, (m, _, _) in zip(sizes, maps, strict=True)
    ]
    counts = spread_counts(sizes, base, np.array([offset for _, _, offset in maps]), np.array(gone))
    return {
        linear: sparsity.with_ratio(count / size)
        for (linear, _, _), count, size in zip(maps, counts.tolist(), sizes.tolist(), strict=True)
    }


def spread_counts(
    sizes: np.ndarray, ratios: np.ndarray, offsets: np.ndarray, gone: np.ndarray
) -> np.ndarray:
    """How many weights each matrix loses, so that all together lose what `ratios` ask for.

    Args:
        sizes: weights of each matrix.
        ratios: asked of each, in [0, 1).
        offsets: added to each, up to a common shift.
        gone: weights of each that are 0 already.

    Returns:
        int64; each within one of its real-valued share, at least `gone`, below its size. Where more
        is gone than is asked for in all, `gone`.
    """
    total = count_removed(float((ratios * sizes).sum() / sizes.sum()), int(sizes.sum()))
    total = max(total, int(gone.sum()))

    def shares(shift: float) -> np.ndarray:
        return np.clip((ratios + offsets + shift) * sizes, gone, np.maximum(gone, sizes - 1))

    low, high = -2.0 - abs(offsets).max(), 2.0 + abs(offsets).max()
    for _ in range(100):  # bisection to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if shares(middle).sum() < total else (low, middle)
    real = shares(high)
    counts = np.floor(real + 1e-9).astype(np.int64)
    # A stable sort: equal remainders go to the first matrices.
    first = np.argsort(-(real - counts), kind="stable")
    counts[first[: total - counts.sum()]] += 1
    return counts


def _base(name: str, ratios: dict[str, float], default: float) -> float:
    return next((r for pattern, r in ratios.items() if fnmatchcase(name, pattern)), default)

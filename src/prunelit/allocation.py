"""Allocations: spread the asked ratio over the blocks of a model."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from prunelit.activations import Probe, SquaredNorm
from prunelit.arguments import Checked
from prunelit.errors import InputError, near_names
from prunelit.models.architecture import names_of, oriented_weight
from prunelit.models.stores import each_whole, whole
from prunelit.sparsity import Sparsity, Unstructured, count_removed

__all__ = ["OWL", "Allocation", "AlphaPruning", "LinearDepth"]

Linears = dict[str, nn.Module]
_BINS = 100  # of the histogram of eigenvalues


class Allocation(Checked, ABC):
    """Differences of the ratio from block to block.

    Example:
        >>> from prunelit.allocation import Allocation
        >>> class KeepFirst(Allocation):
        ...     def offsets(self, blocks, probes):  # the first block loses 20 points less
        ...         return [-0.2] + [0.0] * (len(blocks) - 1)
        >>> KeepFirst().offsets([{}, {}, {}], probes=[])
        [-0.2, 0.0, 0.0]
    """

    def look(self, blocks: list[Linears]) -> Iterable[dict[str, Probe]]:
        """Give the probes for a pass over the whole model, see `Pruner.look`; none by default.

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
            One number for each block. Afterwards `allocate` adds the same shift to all of them, so
            that the asked total is kept.
        """


class LinearDepth(Allocation):
    """Increase the ratio linearly with depth: an arithmetic progression (arXiv:2502.14770).

    This is eq. 10 of the version of ICML 2025. The common difference, beta of the paper, is
    ``2 * spread / (blocks - 1)``. The paper searches for it by perplexity.

    Args:
        spread: the last block gets the mean ratio plus `spread`, the first block minus `spread`; a
            negative value prunes the first blocks most.

    Example:
        >>> from prunelit.allocation import LinearDepth
        >>> LinearDepth(0.1).offsets([{}, {}, {}], probes=[])
        [-0.1, 0.0, 0.1]
    """

    def __init__(self, spread: float = 0.1) -> None:
        if not math.isfinite(spread):
            raise InputError(f"Expected a finite `spread` but got {spread}.")
        self.spread = spread

    def offsets(self, blocks: list[Linears], probes: list[dict[str, Probe]]) -> list[float]:
        return np.linspace(-self.spread, self.spread, len(blocks)).tolist()


class OWL(Allocation):
    """Outlier-weighted layerwise sparsity (Yin et al. 2024, arXiv:2310.05175, s. 3).

    An outlier is a weight whose Wanda score |W_oi| * ||x_i|| is above `outlier` times the mean
    score of its block. Blocks with a greater share of outliers keep more weights. The method needs
    one more pass over the calibration tokens, before any block is pruned.

    Args:
        outlier: M of the paper; multiple of the mean score above which a weight is an outlier.
        spread: lambda of the paper; half the range between the highest and the lowest ratio.

    Example:
        >>> import torch
        >>> from prunelit.allocation import OWL
        >>> blocks = [{"fc": torch.nn.Linear(2, 2).requires_grad_(False)} for _ in range(2)]
        >>> for block, largest in zip(blocks, (1.0, 9.0)):
        ...     block["fc"].weight.data = torch.tensor([[1.0, 1.0], [1.0, largest]])
        >>> owl = OWL(outlier=2.0, spread=0.08)
        >>> probes = list(owl.look(blocks))
        >>> for block in probes:
        ...     block["fc"].statistic.update(torch.ones(3, 2))
        >>> owl.offsets(blocks, probes)  # the second block has an outlier and keeps more
        [0.0, -0.16]
    """

    def __init__(self, outlier: float = 5.0, spread: float = 0.08) -> None:
        if not (0 < outlier < math.inf and 0 <= spread < math.inf):
            raise InputError(
                f"Expected finite `outlier` > 0 and `spread` >= 0 but got {outlier} and {spread}."
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
        shares = {
            index: self._outliers(linears, filled)
            for index, (linears, filled) in enumerate(zip(blocks, probes, strict=True))
            if linears  # a block may have nothing to prune
        }
        lowest, highest = min(shares.values()), max(shares.values())
        if lowest == highest:
            return [0.0] * len(blocks)
        # Ratios differ by at most 2 * spread; the common shift of `allocate` sets their mean.
        return [
            -2 * self.spread * (shares.get(index, lowest) - lowest) / (highest - lowest)
            for index in range(len(blocks))
        ]

    def _outliers(self, linears: Linears, probes: dict[str, Probe]) -> float:
        def scores(name: str) -> Tensor:
            weight = oriented_weight(linears[name]).float()
            return weight.abs() * probes[name].statistic.value.sqrt()

        size = sum(oriented_weight(linear).numel() for linear in linears.values())
        with whole(next(iter(linears.values()))):  # all are in one block
            mean = sum(float(scores(name).sum(dtype=torch.float64)) for name in linears) / size
            return sum(int((scores(name) > self.outlier * mean).sum()) for name in linears) / size


class AlphaPruning(Allocation):
    """Prune the blocks most whose spectra have the lightest tails (Lu et al. 2024, 2410.10912).

    The eigenvalues of W^T W of a trained matrix have a heavy tail. Its exponent alpha is estimated
    by Hill's estimator on the k largest of n eigenvalues, those above the peak of the histogram of
    their logarithms::

        alpha = 1 + k / sum over i = 1..k of ln(lambda_(n-i+1) / lambda_(n-k+1))

    The mean alpha of a block is mapped linearly to its ratio: a large one means a block that
    learned less, which is pruned more. Reads no data.

    Args:
        spread: half the range between the highest and the lowest ratio; tau of the paper is
            `spread` divided by the ratio.

    Differs from the source: the public code tries several ends of the tail near the peak. `spread`
    is added to the ratio and the paper's tau multiplies it; the common shift of `allocate` keeps
    the total.

    Example:
        >>> import torch
        >>> from prunelit.allocation import AlphaPruning
        >>> blocks = [{"fc": torch.nn.Linear(3, 3).requires_grad_(False)} for _ in range(2)]
        >>> for block, values in zip(blocks, ([1.0, 1.1, 1.2], [1.0, 10.0, 100.0])):
        ...     block["fc"].weight.data = torch.tensor(values).diag()
        >>> AlphaPruning(0.1).offsets(blocks, [])  # the second block has the heavier tail
        [0.1, -0.1]
    """

    def __init__(self, spread: float = 0.15) -> None:
        if not 0 <= spread < math.inf:
            raise InputError(f"Expected finite `spread` >= 0 but got {spread}.")
        self.spread = spread

    def offsets(self, blocks: list[Linears], probes: list[dict[str, Probe]]) -> list[float]:
        found = {index: _mean_exponent(own) for index, own in enumerate(blocks) if own}
        lowest, highest = min(found.values()), max(found.values())
        if lowest == highest:
            return [0.0] * len(blocks)
        # A block may have nothing to prune.
        return [
            self.spread * (2 * (found.get(index, lowest) - lowest) / (highest - lowest) - 1)
            for index in range(len(blocks))
        ]


def _mean_exponent(linears: Linears) -> float:
    """Mean exponent of the tails of a block's matrices."""
    with whole(next(iter(linears.values()))):  # all are in one block
        return float(np.mean([tail_exponent(oriented_weight(m)) for m in linears.values()]))


def tail_exponent(weight: Tensor) -> float:
    """Estimate the exponent of the tail of the eigenvalues of W^T W, see `AlphaPruning`.

    Args:
        weight: (O, I), any float type.

    Returns:
        More than 1, lower for a heavier tail. 1 if no eigenvalue is above 0, and at most 1e6.
    """
    eigenvalues = (
        torch.linalg.svdvals(weight.detach().float()).double().square().cpu().numpy()[::-1]
    )
    positive = eigenvalues[eigenvalues > eigenvalues[-1] * 1e-12]
    if not len(positive):
        return 1.0
    logs = np.log(positive)
    counts, edges = np.histogram(logs, bins=_BINS)
    tail = logs[logs >= edges[counts.argmax()]]
    return 1 + min(1e6, len(tail) / max(float((tail - tail[0]).sum()), 1e-300))


def check_allocation(
    sparsity: Sparsity,
    blocks: list[Linears],
    ratios: dict[str, float] | None,
    allocation: Allocation | None,
) -> None:
    """Refuse ratios and allocations that cannot be used.

    Args:
        sparsity: the asked sparsity.
        blocks: the linear maps that are pruned, by name inside their block.
        ratios: other ratios for names that match a pattern.
        allocation: differences between blocks.

    Raises:
        InputError: if `sparsity` has no ratio, or if a pattern or a ratio cannot be used.
    """
    if not ratios and allocation is None:
        return
    if not isinstance(sparsity, Unstructured):
        raise InputError(
            f"Expected `Unstructured` sparsity with `ratios` or `allocation` but got "
            f"{type(sparsity).__name__}, whose ratio is fixed."
        )
    names = dict.fromkeys(
        name
        for linears in blocks
        for full, linear in linears.items()
        for name in reversed(names_of(full, linear))
    )
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
    """Compute the sparsity of each linear map.

    The share of a map is its ratio plus the offset of its block plus a shift that is the same for
    all maps. It is at least the share of weights that are 0 already, and below 1. The shift is
    chosen so that the asked total is reached. Shares become whole numbers of weights by largest
    remainder, so that the total is exact and each map is within one weight of its share.

    Args:
        sparsity: the asked sparsity.
        blocks: the linear maps that are pruned, by name inside their block.
        ratios: other ratios for names that match a pattern; the first match counts.
        allocation: differences between blocks; None for no differences.
        probes: the probes of the allocation's `look`, filled.
    """
    if not ratios and allocation is None:
        return {}
    assert isinstance(sparsity, Unstructured)
    offsets = [0.0] * len(blocks) if allocation is None else allocation.offsets(blocks, probes)
    maps = [
        (linear, _base(names_of(name, linear), ratios or {}, sparsity.ratio), offset)
        for linears, offset in zip(blocks, offsets, strict=True)
        for name, linear in linears.items()
    ]
    sizes = np.array([oriented_weight(linear).numel() for linear, _, _ in maps])
    base = np.array([ratio for _, ratio, _ in maps])
    gone = [
        size - int(oriented_weight(m).count_nonzero())
        for size, m in zip(sizes, each_whole(linear for linear, _, _ in maps), strict=True)
    ]
    counts = spread_counts(sizes, base, np.array([offset for _, _, offset in maps]), np.array(gone))
    return {
        linear: sparsity.with_ratio(count / size)
        for (linear, _, _), count, size in zip(maps, counts.tolist(), sizes.tolist(), strict=True)
    }


def spread_counts(
    sizes: np.ndarray, ratios: np.ndarray, offsets: np.ndarray, gone: np.ndarray
) -> np.ndarray:
    """Count the weights that each matrix loses, so that the sum is the one that `ratios` ask for.

    Args:
        sizes: number of weights of each matrix.
        ratios: ratio of each matrix, in [0, 1).
        offsets: added to the ratio of each matrix, up to a common shift.
        gone: number of weights of each matrix that are 0 already.

    Returns:
        int64, for each matrix within one of its share, at least `gone` and below its size; `gone`
        if more weights are 0 already than `ratios` ask for. The sum is less than asked if each
        matrix would have to lose its last weight.
    """
    total = count_removed(float((ratios * sizes).sum() / sizes.sum()), int(sizes.sum()))
    most = np.maximum(gone, sizes - 1)
    total = max(min(total, int(most.sum())), int(gone.sum()))
    offsets = offsets.clip(-1e6, 1e6)  # beyond, a shift to the last bit is no longer exact

    def shares(shift: float) -> np.ndarray:
        return np.clip((ratios + offsets + shift) * sizes, gone, most)

    low, high = -2.0 - abs(offsets).max(), 2.0 + abs(offsets).max()
    for _ in range(100):  # bisection, to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if shares(middle).sum() < total else (low, middle)
    real = shares(high)
    counts = np.floor(real + 1e-9).astype(np.int64)
    # Stable sort: of equal remainders, the first matrices lose one more.
    first = np.argsort(-(real - counts), kind="stable")
    counts[first[: total - counts.sum()]] += 1
    return counts


def _base(names: tuple[str, ...], ratios: dict[str, float], default: float) -> float:
    """Find the ratio of the first pattern that matches one of the names of a map."""
    found = (
        ratio
        for pattern, ratio in ratios.items()
        if any(fnmatchcase(name, pattern) for name in names)
    )
    return next(found, default)

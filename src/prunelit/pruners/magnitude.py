"""Magnitude pruning."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.activations import Statistic
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, oriented_weight
from prunelit.models.stores import each_whole
from prunelit.pruners.base import Probe
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.sparsity import Unstructured, count_removed

_BINS = 2**16


class Magnitude(LinearPruner):
    """Prune the smallest weights by magnitude (Han et al. 2015, arXiv:1506.02626). Reads no data.

    Weights compete within their matrix. `Unstructured(within=...)` changes this to an output row or
    to the whole `model`, which gives all matrices one threshold on |weight|.

    Args:
        sparsity: how many weights to remove, and among which they compete.
        options: `include`, `exclude`, `ratios`, `allocation` and `expert_tokens` of
            `LinearPruner`.

    Example:
        >>> import torch
        >>> from prunelit.pruners import Magnitude
        >>> from prunelit.sparsity import Unstructured
        >>> weight = torch.tensor([[2.0, -1.0], [4.0, 3.0]])
        >>> Magnitude(Unstructured(0.5, within="matrix")).prune_weight(weight, None)
        tensor([[0., 0.],
                [4., 3.]])
    """

    within = "matrix"
    model_wide = True

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        within = getattr(self.sparsity, "within", None)
        if within == "model" and (self.allocation is not None or self.ratios):
            raise InputError(
                "Expected either `within: model` or `allocation` and `ratios`, but got both."
            )

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        if not isinstance(self.sparsity, Unstructured) or self.sparsity.within != "model":
            return super().decide(model, probes)
        blocks = [self.targets(block) for block in decoder_blocks(model)[1]]
        linears = [linear for linears in blocks for linear in linears.values()]
        sizes = [oriented_weight(linear).numel() for linear in linears]
        counts = lowest_counts(linears, count_removed(self.sparsity.ratio, sum(sizes)))
        one = self.sparsity.with_ratio(0.0)
        one.within = "matrix"
        self._plan = {
            linear: one.with_ratio(count / size)
            for linear, count, size in zip(linears, counts, sizes, strict=True)
        }
        return False

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        return self.remove_lowest(weight, weight.abs())


def lowest_counts(linears: list[nn.Module], total: int) -> list[int]:
    """Count, for each matrix, its weights among the `total` smallest magnitudes of all matrices.

    The count is exact, with two histograms instead of a sort over the model. Read as an integer,
    the bits of a float32 magnitude have the same order as the magnitude. So a histogram of the
    upper 16 bits and one of the lower 16 bits find the threshold. If weights tie at the threshold,
    those of the first matrices are counted first.

    Args:
        linears: the linear maps.
        total: number of weights to remove.
    """

    def bits(linear: nn.Module) -> Tensor:
        return oriented_weight(linear).float().abs().contiguous().view(torch.int32)

    def find(histogram: Tensor, rank: int) -> tuple[int, int]:
        """Find the bin of the element of this rank (from 0), and count the elements below it."""
        cumulative = histogram.cumsum(0)
        place = int(torch.searchsorted(cumulative, rank, right=True))
        return place, int(cumulative[place] - histogram[place])

    if total == 0:
        return [0] * len(linears)
    upper, lower = torch.zeros(2, _BINS, dtype=torch.int64)
    for linear in each_whole(linears):
        upper += torch.bincount((bits(linear) >> 16).flatten(), minlength=_BINS).cpu()
    high, below = find(upper, total - 1)
    counts: list[int] = []
    at: list[tuple[Tensor, Tensor]] = []  # a matrix has few different lower bits in one upper bin
    for linear in each_whole(linears):
        values = bits(linear)
        counts.append(int((values >> 16 < high).sum()))
        inside = values[(values >> 16) == high] & (_BINS - 1)
        found, number = (part.cpu() for part in inside.unique(return_counts=True))
        lower[found.long()] += number
        at.append((found, number))
    low, more = find(lower, total - 1 - below)
    left = total - below - more
    for index, (found, number) in enumerate(at):
        counts[index] += int(number[found < low].sum())
        taken = min(left, int(number[found == low].sum()))
        counts[index] += taken
        left -= taken
    assert left == 0
    return counts

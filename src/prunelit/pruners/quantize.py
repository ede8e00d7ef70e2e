"""Round-to-nearest quantisation, to compare pruning with."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from prunelit.activations import Statistic
from prunelit.errors import InputError
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.sparsity import Unstructured


class Quantize(LinearPruner):
    """Round each weight to the nearest of 2^bits levels between the minimum and maximum of a group.

    The scheme is asymmetric: `group` neighbouring inputs of an output row share a scale and an
    offset; the last group of a row may be shorter. Weights stay in their dtype: this measures the
    error of quantisation and saves no memory. Reads no data.

    Args:
        bits: 8, 4, 3 or 2.
        group: number of inputs that share a scale.
        include: shell patterns of the module names to quantise inside a block, such as `mlp.*`.
        exclude: shell patterns of module names to leave as they are.

    Example:
        >>> import torch
        >>> from prunelit.pruners import Quantize
        >>> weight = torch.tensor([[0.0, 0.9, 2.2, 3.0]])
        >>> Quantize(bits=2, group=4).prune_weight(weight, None)
        tensor([[0., 1., 2., 3.]])
    """

    sparsifies = False

    def __init__(
        self,
        bits: Literal[8, 4, 3, 2] = 4,
        group: int = 64,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__(Unstructured(0.0), include, exclude)
        if bits not in (8, 4, 3, 2):
            raise InputError(f"Expected `bits` 8, 4, 3 or 2 but got {bits}.")
        if group < 1:
            raise InputError(f"Expected `group` of at least 1 but got {group}.")
        self.bits = bits
        self.group = group

    def scale(self, fraction: float) -> "Quantize":
        raise InputError("`Quantize` cannot work in rounds: set one round.")

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        rows, columns = weight.shape
        missing = -columns % self.group
        # Copies of the last input keep the minimum and the maximum of its group.
        padded = F.pad(weight[None], (0, missing), mode="replicate")[0] if missing else weight
        groups = padded.reshape(rows, -1, self.group)
        lowest, highest = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
        scale = (highest - lowest) / (2**self.bits - 1)
        scale = scale.masked_fill(scale == 0, 1.0)  # all weights are equal and stay
        levels = ((groups - lowest) / scale).round()
        return (levels * scale + lowest).reshape(rows, -1)[:, :columns]

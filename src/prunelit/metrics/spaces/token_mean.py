"""Base class of the metrics: a mean over real tokens that streams and merges exactly."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from prunelit.arguments import checked
from prunelit.errors import InputError
from prunelit.metrics.spaces.buffers import rows_per_chunk
from prunelit.metrics.spaces.vector_pair import check_shapes


class TokenMean(Metric):
    """Mean over tokens of a quantity that compares dense and pruned at each token.

    A subclass defines the quantity in `token_values`. The states are a float64 sum and count, also
    after the metric or its module is cast to another type. Two updates, or two ranks with different
    numbers of tokens, therefore give the same value as one update with all tokens. Without any
    token the value is NaN.

    Formula:
        ``sum over tokens of value / number of tokens``

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from prunelit.metrics import TokenMean
        >>> class LargestChange(TokenMean):
        ...     is_differentiable = True
        ...     higher_is_better = False
        ...
        ...     def token_values(self, dense, pruned):
        ...         return (pruned - dense).abs().amax(-1)
        >>> metric = LargestChange()
        >>> metric.update(torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 0.0], [4.0, 0.0, 0.0]]))
        >>> metric.compute()
        tensor(3., dtype=torch.float64)
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("total", "count"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @abstractmethod
    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        """Compare dense and pruned at some tokens.

        Args:
            dense: (N, D) embeddings or (N, V) logits.
            pruned: like `dense`.

        Returns:
            (N,) values.
        """

    @checked
    def update(self, dense: Tensor, pruned: Tensor, mask: Tensor | None = None) -> None:
        """Add tokens.

        Args:
            dense: (..., D) embeddings or (..., V) logits of the dense model.
            pruned: like `dense`, of the pruned model.
            mask: (...,) bool, True for tokens that count. Others are ignored, also if they are NaN.

        Raises:
            InputError: if the shapes do not fit or the mask is not bool.
        """
        for rows in _real_tokens(dense, pruned, mask):
            values = self.token_values(*rows)
            self.total = self.total + values.sum(dtype=torch.float64)
            self.count = self.count + values.numel()

    def compute(self) -> Tensor:
        """Mean over the tokens seen, float64 scalar."""
        return self.total / self.count

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Module:
        # torchmetrics keeps the type of the states in `.half()` but not in `.to(torch.bfloat16)`.
        # In bfloat16 a count stops growing at 256.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, *args, **kwargs)


def _real_tokens(
    dense: Tensor, pruned: Tensor, mask: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    check_shapes(dense, pruned)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != dense.shape[:-1]):
        raise InputError(
            f"Expected a bool mask of shape {tuple(dense.shape[:-1])} but got {mask.dtype} of "
            f"shape {tuple(mask.shape)}."
        )
    size = rows_per_chunk(dense)
    chunks = [x.reshape(-1, x.shape[-1]).split(size) for x in (dense, pruned)]
    if mask is None:
        yield from zip(*chunks, strict=True)
        return
    for keep, *rows in zip(mask.reshape(-1).split(size), *chunks, strict=True):
        yield rows[0][keep], rows[1][keep]

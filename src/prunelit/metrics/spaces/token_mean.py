"""What the metrics share: a mean over real tokens that streams and merges exactly."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from prunelit.errors import InputError
from prunelit.metrics.spaces.buffers import rows_per_chunk
from prunelit.metrics.spaces.vector_pair import check_shapes


class TokenMean(Metric):
    """Mean over tokens of a quantity that compares dense and pruned at each token.

    A subclass says what it compares in `token_values`. The states are a float64 sum and count,
    whatever type the metric or a module that holds it is cast to, so two updates, or two ranks with
    different numbers of tokens, give what one update on all tokens gives. Without any token the
    value is nan.

    Args:
        kwargs: see `torchmetrics.Metric`.
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
        """Compare some tokens.

        Args:
            dense: (N, D) embeddings or (N, V) logits.
            pruned: like `dense`.

        Returns:
            (N,) values.
        """

    def update(self, dense: Tensor, pruned: Tensor, mask: Tensor | None = None) -> None:
        """Add tokens.

        Args:
            dense: (..., D) embeddings or (..., V) logits of the dense model.
            pruned: like `dense`, of the pruned model.
            mask: (...,) bool, True counts; other tokens enter nothing, NaN there included.

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
        # torchmetrics keeps the states' type in `.half()` but not in `.to(torch.bfloat16)`, where
        # a count stops growing at 256.
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

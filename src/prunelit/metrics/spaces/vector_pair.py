"""Two vectors per token: angle between them, and the parts of their difference."""

from functools import cached_property

import torch
from torch import Tensor

from prunelit.errors import InputError
from prunelit.metrics.spaces.buffers import Buffers


class VectorPair:
    """A vector of the dense model beside the one of the pruned model, for every token.

    What several quantities share is computed once and kept. Dot products are kept in float64, so
    the difference of two of them loses nothing more.

    Zero vectors have no direction; by definition here the cosine is 1 where both are zero and 0
    where one is. From a dense zero vector to another one the orthogonal part is inf. No NaN arises
    from finite input.

    Args:
        dense: (..., N), any float type; computed in float32, or float64 where one of the two is.
        pruned: (..., N).
        buffers: memory for intermediates of size N; only where no gradient is wanted.

    Raises:
        InputError: if the shapes differ or there is no axis N.
    """

    def __init__(self, dense: Tensor, pruned: Tensor, buffers: Buffers | None = None) -> None:
        check_shapes(dense, pruned)
        dtype = torch.promote_types(torch.promote_types(dense.dtype, pruned.dtype), torch.float32)
        self.dense = dense.to(dtype)
        self.pruned = pruned.to(dtype)
        self._buffers = buffers

    @cached_property
    def difference(self) -> Tensor:
        """(..., N), pruned minus dense."""
        out = self._buffers and self._buffers.get("difference", self.dense)
        return torch.sub(self.pruned, self.dense, out=out)

    @cached_property
    def total(self) -> Tensor:
        """(...,), sum of the difference over N."""
        return self.difference.sum(-1).double()

    @cached_property
    def squared_distance(self) -> Tensor:
        """(...,), squared norm of the difference."""
        return dot(self.difference, self.difference, self._buffers)

    @cached_property
    def _squared_norm(self) -> Tensor:
        return dot(self.dense, self.dense, self._buffers)

    @cached_property
    def projection(self) -> Tensor:
        """(...,), signed length of the difference along the dense vector, in lengths of it."""
        norm = self._squared_norm
        along = dot(self.dense, self.difference, self._buffers)
        return torch.where(norm == 0, 0.0, along / norm)

    @cached_property
    def squared_orthogonal(self) -> Tensor:
        """(...,), square of `orthogonal`."""
        norm = self._squared_norm
        rest = self.squared_distance - self.projection.square() * norm
        # Rounding can leave the difference of two equal squares below zero.
        share = rest.clamp_min(0) / norm
        return torch.where((norm == 0) & (rest == 0), 0.0, share)

    @property
    def parallel(self) -> Tensor:
        """(...,), norm of the difference's part along the dense vector, relative to its norm."""
        return self.projection.abs()

    @property
    def orthogonal(self) -> Tensor:
        """(...,), norm of the difference's part orthogonal to the dense vector, relative to it.

        In float32 rounding leaves about 3e-4 times the parallel part where it should be 0.
        """
        return self.squared_orthogonal.sqrt()

    @property
    def cosine(self) -> Tensor:
        """(...,), cosine between dense and pruned, exactly 1 where they are equal.

        Computed from the two parts of the difference: unlike a quotient of dot products this keeps
        the digits of 1 - cosine where the vectors are close.
        """
        along = 1 + self.projection
        length = (along.square() + self.squared_orthogonal).sqrt()
        cosine = along / length
        # A pruned vector far shorter than the dense one would be what rounding leaves of it.
        short = length < 0.1
        if short.any():
            norm = (self._squared_norm * dot(self.pruned, self.pruned, self._buffers)).sqrt()
            quotient = dot(self.dense, self.pruned, self._buffers) / norm
            cosine = torch.where(short, torch.where(norm == 0, 0.0, quotient), cosine)
        return cosine


def dot(x: Tensor, y: Tensor, buffers: Buffers | None = None) -> Tensor:
    """(...,) float64, the sum over the last axis of x * y."""
    out = buffers and buffers.get("product", x)
    return torch.mul(x, y, out=out).sum(-1).double()


def check_shapes(dense: Tensor, pruned: Tensor) -> None:
    """Refuse tensors that cannot be compared entry by entry.

    Raises:
        InputError: if the shapes differ or there is no axis.
    """
    if dense.shape != pruned.shape or dense.ndim == 0:
        raise InputError(
            "Expected dense and pruned tensors of one shape (..., N) but got "
            f"{tuple(dense.shape)} and {tuple(pruned.shape)}."
        )

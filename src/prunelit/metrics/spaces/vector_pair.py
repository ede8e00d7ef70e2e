"""Two vectors per token: the angle between them and the parts of their difference."""

from functools import cached_property

import torch
from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import InputError
from prunelit.metrics.spaces.buffers import Buffers


@checked
class VectorPair:
    """A vector of the dense model and one of the pruned model for every token.

    Everything is computed in float64, also for logits of a narrower type: a small difference of two
    vectors would otherwise be lost in the rounding of their sums. Intermediates that several
    quantities share are computed once and kept.

    A zero vector has no direction. The cosine is defined as 1 if both vectors are zero and as 0 if
    one is. If only the dense vector is zero, the orthogonal part is infinite. Finite input never
    gives NaN.

    Args:
        dense: (..., N), any float type.
        pruned: (..., N).
        buffers: memory for intermediates of size N. Give it only if no gradient is needed.

    Raises:
        InputError: if the shapes differ, there is no axis N or no entry, the numbers are complex,
            or the device has no float64.

    Example:
        >>> import torch
        >>> from prunelit.metrics import VectorPair
        >>> pair = VectorPair(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 1.0]))
        >>> pair.parallel, pair.orthogonal
        (tensor(0.5000, dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
        >>> pair.cosine
        tensor(0.9487, dtype=torch.float64)
    """

    def __init__(self, dense: Tensor, pruned: Tensor, buffers: Buffers | None = None) -> None:
        check_shapes(dense, pruned)
        self.dense = widen(dense, buffers, "dense")
        self.pruned = widen(pruned, buffers, "pruned")
        self._buffers = buffers

    @cached_property
    def difference(self) -> Tensor:
        """(..., N), pruned minus dense."""
        out = self._buffers and self._buffers.get("difference", self.dense)
        return torch.sub(self.pruned, self.dense, out=out)

    @cached_property
    def total(self) -> Tensor:
        """(...,), sum of the difference over N."""
        return self.difference.sum(-1)

    @cached_property
    def squared_distance(self) -> Tensor:
        """(...,), squared norm of the difference."""
        return dot(self.difference, self.difference, self._buffers)

    @cached_property
    def squared_norm(self) -> Tensor:
        """(...,), squared norm of the dense vector."""
        return dot(self.dense, self.dense, self._buffers)

    @cached_property
    def along(self) -> Tensor:
        """(...,), dot product of the dense vector and the difference."""
        return dot(self.dense, self.difference, self._buffers)

    @cached_property
    def projection(self) -> Tensor:
        """(...,), signed length of the difference along the dense vector, relative to its norm."""
        return torch.where(self.squared_norm == 0, 0.0, self.along / self.squared_norm)

    @cached_property
    def squared_orthogonal(self) -> Tensor:
        """(...,), the square of `orthogonal`."""
        norm = self.squared_norm
        rest = self.squared_distance - self.projection.square() * norm
        # Rounding can leave the difference of two equal squares below zero.
        share = rest.clamp_min(0) / norm
        return torch.where((norm == 0) & (rest == 0), 0.0, share)

    @property
    def parallel(self) -> Tensor:
        """(...,), length of the difference along the dense vector, relative to its norm."""
        return self.projection.abs()

    @property
    def orthogonal(self) -> Tensor:
        """(...,), length of the difference orthogonal to the dense vector, relative to its norm.

        Rounding leaves about 1e-8 times the parallel part when the exact value is 0.
        """
        return self.squared_orthogonal.sqrt()

    @cached_property
    def product(self) -> Tensor:
        """(...,), dot product of the dense and the pruned vector."""
        return dot(self.dense, self.pruned, self._buffers)

    @cached_property
    def pruned_squared_norm(self) -> Tensor:
        """(...,), squared norm of the pruned vector."""
        return dot(self.pruned, self.pruned, self._buffers)

    @cached_property
    def length(self) -> Tensor:
        """(...,), norm of the pruned vector relative to the dense one, from both parts."""
        return ((1 + self.projection).square() + self.squared_orthogonal).sqrt()

    @cached_property
    def short(self) -> Tensor:
        """(...,) bool, True if the pruned vector is so short that `1 + projection` is rounding."""
        return self.length < 0.1

    @property
    def cosine(self) -> Tensor:
        """(...,), cosine of dense and pruned, in [-1, 1] and exactly 1 for equal vectors.

        It is computed from the two parts of the difference. Unlike a quotient of dot products, this
        keeps the digits of 1 - cosine for close vectors.
        """
        cosine = (1 + self.projection) / self.length
        if self.short.any():
            norm = (self.squared_norm * self.pruned_squared_norm).sqrt()
            quotient = torch.where(norm == 0, 0.0, (self.product / norm).clamp(-1, 1))
            cosine = torch.where(self.short, quotient, cosine)
        return cosine


class VectorSums(VectorPair):
    """A pair of which only sums over N are known.

    Args:
        squared_norm: (...,), of the dense vector.
        along: (...,), dot product of the dense vector and the difference.
        squared_distance: (...,), squared norm of the difference.
        total: (...,), sum of the difference.
    """

    def __init__(
        self, squared_norm: Tensor, along: Tensor, squared_distance: Tensor, total: Tensor
    ) -> None:
        self.squared_norm = squared_norm
        self.along = along
        self.squared_distance = squared_distance
        self.total = total
        # Few digits where the pruned vector is `short`.
        self.product = squared_norm + along
        self.pruned_squared_norm = (squared_norm + 2 * along + squared_distance).clamp_min(0)


def dot(x: Tensor, y: Tensor, buffers: Buffers | None = None) -> Tensor:
    """Sum x * y over the last axis, both float64, to (...,)."""
    out = buffers and buffers.get("product", x)
    return torch.mul(x, y, out=out).sum(-1)


def widen(x: Tensor, buffers: Buffers | None = None, name: str = "") -> Tensor:
    """Copy a tensor of a narrower type to float64.

    Args:
        x: any float type.
        buffers: memory of the copy.
        name: of the memory.

    Raises:
        InputError: if the device has no float64.
    """
    check_float64(x.device)
    if x.dtype == torch.float64:
        return x
    return buffers.get(name, x, torch.float64).copy_(x) if buffers else x.double()


def check_float64(device: torch.device) -> None:
    """Refuse a device that has no float64.

    Raises:
        InputError: naming MPS.
    """
    if device.type == "mps":
        raise InputError(
            "Models are compared in float64, which MPS does not support: move the tensors to the "
            "CPU."
        )


def check_shapes(dense: Tensor, pruned: Tensor) -> None:
    """Refuse tensors that cannot be compared entry by entry.

    Raises:
        InputError: if the shapes differ, there is no axis or no entry, or the numbers are complex.
    """
    if dense.shape != pruned.shape or dense.ndim == 0 or dense.shape[-1] == 0:
        raise InputError(
            "Expected dense and pruned tensors of one shape (..., N) but got "
            f"{tuple(dense.shape)} and {tuple(pruned.shape)}."
        )
    if dense.is_complex() or pruned.is_complex():
        raise InputError(f"Expected real numbers but got {dense.dtype} and {pruned.dtype}.")

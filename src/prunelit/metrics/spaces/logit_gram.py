"""Compare logits without computing them: by the embeddings and one matrix of the unembedding.

Logits are z = s (W h + b), so norms and dot products over the vocabulary are those of embeddings
under G = s^2 W'W: |z' - z|^2 = d'Gd with d = h' - h. A bias adds a row to G and a 1 to each h.
"""

import itertools
from functools import cached_property

import torch
from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import InputError
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.vector_pair import VectorPair, check_float64, check_shapes, dot

_ENTRIES = 2**22  # of the unembedding that are widened at one time, 32 MiB
# G is U + U' with an upper triangular U, of which the blocks below the diagonal need no product.
_BLOCKS = 6


@checked
class LogitGram:
    """Sums over the vocabulary of products of the columns of an unembedding.

    They are (D, D) numbers in float64, where the logits of a token are V. Two embeddings are
    exactly what their dtype says, and so is d: unlike a difference of logits in float32, d'Gd keeps
    its digits where the models are nearly equal.

    Building it takes about as long as the float32 logits of 2 D tokens.

    Args:
        weight: (V, D), W of the unembedding, any float type.
        bias: (V,), b; None is 0.
        scale: s, by which the logits are multiplied.

    Raises:
        InputError: if the shapes do not fit, or the device has no float64.

    Attributes:
        vocabulary: V.
        finite: False if the unembedding has a weight that is infinite or NaN.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitGram, logit_mse
        >>> gram = LogitGram(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))  # V = 3, D = 2
        >>> pair = gram.compare(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
        >>> logit_mse(pair)  # of z = (1, 0, 1) and z' = (1, 2, 3)
        tensor([2.6667], dtype=torch.float64)
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> None:
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise InputError(
                "Expected an unembedding of shape (V, D) and a bias of shape (V,) but got "
                f"{tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}."
            )
        check_float64(weight.device)
        self.vocabulary, self._width = weight.shape
        self._biased = bias is not None
        size = self._width + self._biased
        matrix = weight.new_zeros(size, size, dtype=torch.float64)
        self._sums = weight.new_zeros(size, dtype=torch.float64)
        for start in range(0, self.vocabulary, rows := max(1, _ENTRIES // size)):
            place = slice(start, start + rows)
            part = weight.detach()[place].double()
            if bias is not None:
                part = torch.cat([part, bias.detach()[place, None].double()], 1)
            part = part * float(scale)
            matrix.addmm_(part.T, part)
            self._sums += part.sum(0)
        self.finite = bool(matrix.isfinite().all())
        upper = matrix.triu(1) + matrix.diagonal().diag() / 2
        columns = upper.split(-(-size // _BLOCKS), 1)
        ends = itertools.accumulate(part.shape[1] for part in columns)
        self._columns = [part[:end].contiguous() for part, end in zip(columns, ends, strict=True)]

    def apply(self, hidden: Tensor) -> Tensor:
        """Multiply embeddings by the upper triangle of the matrix.

        Args:
            hidden: (N, D), any float type.

        Returns:
            (N, D'), for several calls of `compare`.
        """
        return self.multiply(self._extend(hidden))

    def multiply(self, wide: Tensor) -> Tensor:
        """As `apply`, of (N, D') float64, which has the column for the bias."""
        return torch.cat([wide[:, : len(part)] @ part for part in self._columns], 1)

    def compare(self, dense: Tensor, pruned: Tensor, applied: Tensor | None = None) -> "GramPair":
        """Pair the logits of two embeddings; they are never computed.

        Args:
            dense: (N, D) embeddings of the dense model, any float type.
            pruned: (N, D).
            applied: of the dense ones, see `apply`; None computes it.

        Returns:
            The logits, of which only sums over V are known: cosine, mean squared difference, both
            parts, and standard deviation of the difference.

        Raises:
            InputError: if the shapes differ, or are not those of the unembedding.
        """
        check_shapes(dense, pruned)
        if dense.ndim != 2 or dense.shape[1] != self._width:
            raise InputError(
                f"Expected embeddings of shape (N, {self._width}) but got {tuple(dense.shape)}."
            )
        h, other = self._extend(dense), self._extend(pruned)
        u_h = self.multiply(h) if applied is None else applied
        return GramPair(GramVectors(self, h, other, u_h), self.vocabulary)

    def total(self, difference: Tensor) -> Tensor:
        """Sum logits over the vocabulary, of (N, D') to (N,)."""
        return difference @ self._sums

    def _extend(self, hidden: Tensor) -> Tensor:
        """Widen (N, D), and add a column for the bias."""
        wide = hidden.to(self._sums.device, torch.float64)
        return torch.cat([wide, wide.new_ones(len(wide), 1)], 1) if self._biased else wide


class GramPair(LogitPair):
    """The logits of two embeddings, of which only sums over the vocabulary are known.

    Args:
        vectors: the sums.
        vocabulary: V.
    """

    def __init__(self, vectors: "GramVectors", vocabulary: int) -> None:
        self.vectors = vectors
        self.size = torch.full_like(vectors.total, vocabulary)
        self.excluded = None


class GramVectors(VectorPair):
    """The sums over the vocabulary that the angle of two logit vectors and their parts need.

    The orthogonal part is that of d and not a difference of two squares, so `1 - cosine` has its
    digits however small it is beside the parallel part.

    Args:
        gram: of the unembedding.
        dense: (N, D') float64, h.
        pruned: (N, D').
        u_h: (N, D'), h by the upper triangle of the matrix.
    """

    def __init__(self, gram: LogitGram, dense: Tensor, pruned: Tensor, u_h: Tensor) -> None:
        d = pruned - dense
        u_d = gram.multiply(d)
        self.squared_norm = 2 * dot(dense, u_h).clamp_min(0)
        self.along = dot(dense, u_d) + dot(d, u_h)
        self.squared_distance = 2 * dot(d, u_d).clamp_min(0)
        self.total = gram.total(d)
        share = self.projection[:, None]
        apart, u_apart = (torch.addcmul(x, share, y, value=-1) for x, y in ((d, dense), (u_d, u_h)))
        rest = 2 * dot(apart, u_apart).clamp_min(0)
        norm = self.squared_norm
        self.squared_orthogonal = torch.where((norm == 0) & (rest == 0), 0.0, rest / norm)
        self._gram, self._pruned, self._dense, self._u_h = gram, pruned, dense, u_h

    @cached_property
    def _u_pruned(self) -> Tensor:
        return self._gram.multiply(self._pruned)

    @cached_property
    def product(self) -> Tensor:
        """(N,), dot product of the dense and the pruned logits."""
        return dot(self._pruned, self._u_h) + dot(self._dense, self._u_pruned)

    @cached_property
    def pruned_squared_norm(self) -> Tensor:
        """(N,), squared norm of the pruned logits."""
        return 2 * dot(self._pruned, self._u_pruned).clamp_min(0)

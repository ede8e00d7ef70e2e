"""Sparsities: turn scores (higher stays) into a keep mask that removes exactly k weights."""

import copy
import math
from abc import ABC, abstractmethod
from typing import Literal, TypeVar

import numpy as np
import torch
from jsonargparse.typing import PositiveInt, restricted_number_type
from torch import Tensor

from prunelit.arguments import Checked
from prunelit.errors import InputError

__all__ = ["SemiStructured", "Sparsity", "Unstructured"]

Ratio = restricted_number_type("Ratio", float, [(">=", 0), ("<", 1)])
Within = Literal["row", "matrix", "model"]
_ENTRIES = 2**21  # scores that are sorted at one time

_Self = TypeVar("_Self", bound="Sparsity")


class Sparsity(Checked, ABC):
    """Number of weights to remove from a matrix, and the groups in which they compete.

    Example:
        >>> import torch
        >>> from prunelit.sparsity import Sparsity
        >>> class DropOne(Sparsity):
        ...     def keep_mask(self, scores):
        ...         return scores > scores.min()
        >>> DropOne().keep_mask(torch.tensor([[3.0, 1.0], [2.0, 4.0]]))
        tensor([[ True, False],
                [ True,  True]])
    """

    @abstractmethod
    def keep_mask(self, scores: Tensor) -> Tensor:
        """Choose the weights that stay.

        Args:
            scores: (O, I), higher stays; no NaN.

        Returns:
            (O, I) bool, True keeps. Of equal scores, the one in the lower column is removed.
        """

    def check(self, shape: tuple[int, int], name: str) -> None:
        """Refuse a weight of this shape before any heavy work.

        Raises:
            InputError: if a weight of `shape` (O, I) cannot be pruned this way.
        """

    def scale(self: _Self, fraction: float) -> _Self:
        """Copy the sparsity so that it removes only `fraction` of the weights, for early rounds.

        Raises:
            InputError: if this sparsity cannot remove a fraction.
        """
        raise InputError(f"{type(self).__name__} cannot be reached in rounds: set one round.")

    def with_default(self: _Self, within: Within) -> _Self:
        """Copy the sparsity with the method's own `within`, if the user left it open."""
        return self


class Unstructured(Sparsity):
    """Remove round(ratio * O * I) weights of a matrix.

    Args:
        ratio: share of the weights to remove, in [0, 1).
        within: group in which weights compete: an output `row` (all rows lose the same number, up
            to one), the whole `matrix`, or all matrices of the `model` (`Magnitude` only). None
            takes the group of the method's paper.

    Differs from the public Wanda and magnitude code: these compare with a threshold and remove all
    scores that tie with it; here exactly the asked number is removed. Within rows, public Wanda
    removes floor(ratio * I) weights of each row, in all fewer than asked.

    Example:
        >>> import torch
        >>> from prunelit.sparsity import Unstructured
        >>> scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> Unstructured(0.5, within="row").keep_mask(scores)
        tensor([[False,  True],
                [False,  True]])
        >>> Unstructured(0.5, within="matrix").keep_mask(scores)
        tensor([[False, False],
                [ True,  True]])
    """

    def __init__(
        self,
        ratio: Ratio,  # type: ignore[valid-type]
        within: Within | None = None,
    ) -> None:
        check_ratio(ratio)
        if within not in (None, "row", "matrix", "model"):
            raise InputError(f"Expected `within` row, matrix or model but got {within!r}.")
        self.ratio = float(ratio)
        self.within = within

    def keep_mask(self, scores: Tensor) -> Tensor:
        rows, columns = scores.shape
        remove = count_removed(self.ratio, scores.numel())
        if self.within == "matrix":
            return keep_highest(scores.reshape(1, -1), scores.numel() - remove).view(rows, columns)
        counts = row_counts(remove, rows).to(scores.device)
        fewer = remove // rows
        mask = keep_highest(scores, columns - fewer)
        chosen = counts > fewer
        if chosen.any():
            mask[chosen] = keep_highest(scores[chosen], columns - fewer - 1)
        return mask

    def scale(self, fraction: float) -> "Unstructured":
        return self.with_ratio(self.ratio * fraction)

    def with_ratio(self, ratio: float) -> "Unstructured":
        """Copy the sparsity with another ratio."""
        other = copy.copy(self)
        other.ratio = ratio
        return other

    def with_default(self, within: Within) -> "Unstructured":
        other = copy.copy(self)
        other.within = self.within or within
        return other


class SemiStructured(Sparsity):
    """N:M sparsity: keep `keep` weights of every `group` neighbouring inputs.

    NVIDIA's 2:4 is `keep=2, group=4`.

    Args:
        keep: N, number of weights that stay in a group, at least 1.
        group: M, number of neighbouring inputs in a group, at least `keep`.

    Example:
        >>> import torch
        >>> from prunelit.sparsity import SemiStructured
        >>> SemiStructured(keep=2, group=4).keep_mask(torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
        tensor([[False,  True, False,  True]])
    """

    def __init__(self, keep: PositiveInt, group: PositiveInt) -> None:  # type: ignore[valid-type]
        if not 1 <= keep <= group:
            raise InputError(f"Expected 1 <= `keep` <= `group` but got {keep} of {group}.")
        self.keep = int(keep)
        self.group = int(group)

    def keep_mask(self, scores: Tensor) -> Tensor:
        self.check((scores.shape[0], scores.shape[1]), "scores")
        groups = scores.reshape(-1, self.group)
        return keep_highest(groups, self.keep).reshape(scores.shape)

    def check(self, shape: tuple[int, int], name: str) -> None:
        if shape[1] % self.group:
            raise InputError(
                f"Expected the inputs of {name} to be divisible by `group` {self.group} but got "
                f"{shape[1]}: exclude this module or choose another group."
            )

    def scale(self, fraction: float) -> "SemiStructured":
        """Remove whole weights of each group, so that an early round may remove less."""
        remove = math.floor(round(fraction * (self.group - self.keep), 9))
        return SemiStructured(self.group - remove, self.group)


def check_ratio(ratio: float) -> None:
    """Refuse a share to remove that is not in [0, 1).

    Raises:
        InputError: naming `ratio`.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise InputError(f"Expected `ratio` in [0, 1) but got {ratio!r}.")


def count_removed(ratio: float, size: int) -> int:
    """Round `ratio * size` to a whole number of weights, halves down."""
    # In binary, 0.29 * 50 is 14.499999999999998 instead of 14.5.
    return math.ceil(round(ratio * size, 6) - 0.5)


def row_counts(remove: int, rows: int) -> Tensor:
    """Divide the weights to remove among rows, so that row counts differ by at most one.

    The rows that lose one more are spread over the matrix. With a larger number to remove, no row
    loses less: a later round removes at least the weights of the earlier one.

    Args:
        remove: number of weights to remove from all rows.
        rows: number of rows.

    Returns:
        (rows,) int64, on the CPU; sums to `remove`.
    """
    fewer, extra = divmod(remove, rows)
    # Fractional parts of multiples of the golden ratio: for every k the first k are spread evenly.
    order = (torch.arange(rows, dtype=torch.float64) * 0.6180339887498949 % 1).argsort(stable=True)
    counts = torch.full((rows,), fewer)
    counts[order[:extra]] += 1
    return counts


def keep_highest(scores: Tensor, keep: int) -> Tensor:
    """Mark the `keep` highest scores of each row; of equal scores, the higher columns stay.

    Args:
        scores: (R, C), no NaN.
        keep: number of scores to keep in a row, 0 <= keep <= C.

    Returns:
        (R, C) bool.
    """
    remove = scores.shape[1] - keep
    if remove == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    # Some rows at a time, since the work takes several times the memory of the scores.
    parts = scores.split(max(1, _ENTRIES // scores.shape[1]))
    return torch.cat([_keep_highest(part, keep) for part in parts])


def _keep_highest(scores: Tensor, keep: int) -> Tensor:
    # Unlike topk, ties are decided by index, so that masks do not depend on the device, the number
    # of threads or the number of ranks.
    remove = scores.shape[1] - keep
    threshold = _kth_lowest(scores, remove)
    mask = scores > threshold
    missing = keep - mask.count_nonzero(1)[:, None]
    if not missing.any():
        return mask
    tied = scores == threshold
    # The last `missing` scores of a tie stay.
    return mask | (tied & (tied.flip(1).cumsum(1).flip(1) <= missing))


def _kth_lowest(scores: Tensor, k: int) -> Tensor:
    """Find the k-th lowest score (from 1) of each row of (R, C); (R, 1)."""
    if scores.device.type == "cpu" and scores.dtype is torch.float32:
        # Ten times as fast as `kthvalue` on a CPU.
        return torch.from_numpy(np.partition(scores.numpy(), k - 1)[:, k - 1 : k])
    return scores.kthvalue(k, dim=1, keepdim=True).values

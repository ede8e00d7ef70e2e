"""From scores to a keep mask: scores (higher stays) in, True keeps out, exactly k removed."""

import copy
import math
from abc import ABC, abstractmethod
from typing import Literal, TypeVar

import numpy as np
import torch
from jsonargparse.typing import PositiveInt, restricted_number_type
from torch import Tensor

from prunelit.errors import InputError

__all__ = ["SemiStructured", "Sparsity", "Unstructured"]

Ratio = restricted_number_type("Ratio", float, [(">=", 0), ("<", 1)])
Within = Literal["row", "matrix", "model"]
_Self = TypeVar("_Self", bound="Sparsity")


class Sparsity(ABC):
    """How many weights of a matrix go, and within which groups they compete."""

    @abstractmethod
    def keep_mask(self, scores: Tensor) -> Tensor:
        """Choose the weights that stay.

        Args:
            scores: (O, I), higher stays; no NaN.

        Returns:
            (O, I) bool, True keeps. Of equal scores the one with the lower column index goes.
        """

    def check(  # noqa: B027 - most shapes suit most methods
        self, shape: tuple[int, int], name: str
    ) -> None:
        """Refuse a weight of this shape before any heavy work.

        Raises:
            InputError: if a weight of `shape` (O, I) cannot be pruned this way.
        """

    def scale(self: _Self, fraction: float) -> _Self:
        """The same with `fraction` of the removed weights, for an earlier round.

        Raises:
            InputError: if this sparsity has no smaller form.
        """
        raise InputError(f"{type(self).__name__} cannot be reached in rounds: set one round.")

    def with_default(self: _Self, within: Within) -> _Self:
        """The same, competing `within` where the user left that open."""
        return self


class Unstructured(Sparsity):
    """Remove round(ratio * O * I) weights of a matrix.

    Args:
        ratio: asked share of removed weights, in [0, 1).
        within: where weights compete: an output `row` (rows lose the same number, give or take
            one), the whole `matrix`, or all matrices of the `model` (`Magnitude` only). None is
            what the method was published with.

    Differs from the public Wanda and magnitude code where scores tie: those compare with a
    threshold and remove every tie; exactly the asked number is removed here. Within rows, public
    Wanda removes floor(ratio * I) of each and so less than asked in all.
    """

    def __init__(
        self,
        ratio: Ratio,  # type: ignore[valid-type]
        within: Within | None = None,
    ) -> None:
        if not 0 <= ratio < 1:
            raise InputError(f"Expected `ratio` in [0, 1) but got {ratio}.")
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
        """The same with another ratio."""
        other = copy.copy(self)
        other.ratio = ratio
        return other

    def with_default(self, within: Within) -> "Unstructured":
        other = copy.copy(self)
        other.within = self.within or within
        return other


class SemiStructured(Sparsity):
    """N:M sparsity: keep `keep` weights of every `group` neighbours along the input.

    NVIDIA's 2:4 is `keep=2, group=4`.

    Args:
        keep: N, weights that stay in a group, at least 1.
        group: M, neighbouring inputs of a group, at least `keep`.
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
                f"{shape[1]}; exclude this module or choose another group."
            )

    def scale(self, fraction: float) -> "SemiStructured":
        """Whole weights of each group go, so an early round may remove less than its share."""
        remove = math.floor(round(fraction * (self.group - self.keep), 9))
        return SemiStructured(self.group - remove, self.group)


def count_removed(ratio: float, size: int) -> int:
    """How many of `size` weights go: the nearest whole number, halves down."""
    # 0.29 * 50 is 14.499999999999998 in binary; what is meant is 14.5.
    return math.ceil(round(ratio * size, 6) - 0.5)


def row_counts(remove: int, rows: int) -> Tensor:
    """How many weights each row loses if all lose the same number, give or take one.

    Rows that lose one more lie spread out, and lose one more of every larger number too, so that
    what a round removes stays removed in the next.

    Returns:
        (rows,) int64, on the CPU; sums to `remove`.
    """
    fewer, extra = divmod(remove, rows)
    # Multiples of the golden section, less whole ones: the first k of them are spread for every k.
    order = (torch.arange(rows, dtype=torch.float64) * 0.6180339887498949 % 1).argsort(stable=True)
    counts = torch.full((rows,), fewer)
    counts[order[:extra]] += 1
    return counts


def keep_highest(scores: Tensor, keep: int) -> Tensor:
    """True at the `keep` highest scores of each row; ties lose the lower column first.

    Args:
        scores: (R, C), no NaN.
        keep: number kept in a row, 0 <= keep <= C.

    Returns:
        (R, C) bool.
    """
    remove = scores.shape[1] - keep
    if remove == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    # A stable choice (unlike topk alone): ties go by index, so masks do not depend on the device,
    # the number of threads or the number of ranks.
    threshold = _kth_lowest(scores, remove)
    mask = scores > threshold
    missing = keep - mask.count_nonzero(1)[:, None]
    if not missing.any():
        return mask
    tied = scores == threshold
    # The last `missing` of the ties stay.
    return mask | (tied & (tied.flip(1).cumsum(1).flip(1) <= missing))


def _kth_lowest(scores: Tensor, k: int) -> Tensor:
    """(R, 1), the k-th lowest score of each row of (R, C), counted from 1."""
    if scores.device.type == "cpu" and scores.dtype is torch.float32:
        # Ten times as fast as `kthvalue` there.
        return torch.from_numpy(np.partition(scores.numpy(), k - 1)[:, k - 1 : k])
    return scores.kthvalue(k, dim=1, keepdim=True).values

"""From scores to a keep mask: scores (higher stays) in, True keeps out, exactly k removed."""

import math
from abc import ABC, abstractmethod

import torch
from jsonargparse.typing import PositiveInt, restricted_number_type
from torch import Tensor

from prunelit.errors import InputError

Ratio = restricted_number_type("Ratio", float, [(">=", 0), ("<", 1)])


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


class Unstructured(Sparsity):
    """Remove floor(ratio * I) weights of each output row.

    Args:
        ratio: asked share of removed weights, in [0, 1).

    Differs from the public Wanda and magnitude code where scores tie: those compare with a
    threshold and remove every tie; exactly the asked number is removed here.
    """

    def __init__(self, ratio: Ratio) -> None:  # type: ignore[valid-type]
        if not 0 <= ratio < 1:
            raise InputError(f"Expected `ratio` in [0, 1) but got {ratio}.")
        self.ratio = float(ratio)

    def keep_mask(self, scores: Tensor) -> Tensor:
        # 0.29 * 100 is 28.999999999999996 in binary; the count meant is 29.
        remove = math.floor(round(self.ratio * scores.shape[1], 9))
        return keep_highest(scores, scores.shape[1] - remove)


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


def keep_highest(scores: Tensor, keep: int) -> Tensor:
    """True at the `keep` highest scores of each row; ties lose the lower column first.

    Args:
        scores: (R, C), no NaN.
        keep: number kept in a row, 0 <= keep <= C.

    Returns:
        (R, C) bool.
    """
    remove = scores.shape[1] - keep
    mask = torch.ones_like(scores, dtype=torch.bool)
    if remove == 0:
        return mask
    # A stable sort (unlike topk and kthvalue) breaks ties by index, so masks do not depend on the
    # device, the number of threads or the number of ranks.
    order = scores.argsort(dim=1, stable=True)[:, :remove]
    return mask.scatter_(1, order, False)

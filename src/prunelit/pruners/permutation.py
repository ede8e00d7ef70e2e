"""Orders of input channels that let N:M groups keep more of the scores."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from prunelit.activations import Statistic

_ENTRIES = 2**24  # numbers in memory at a time


class Reordered(Statistic):
    """A filled statistic whose channels have another order.

    Args:
        statistic: its value is (I,).
        order: (I,) int64, the present channel at each new place.
    """

    def __init__(self, statistic: Statistic, order: Tensor) -> None:
        self._statistic = statistic
        self._order = order

    def update(self, *x: Tensor) -> None:
        raise NotImplementedError("its channels were reordered when all tokens were read")

    def all_reduce_(self) -> None:
        raise NotImplementedError("its channels were reordered when all tokens were read")

    @property
    def value(self) -> Tensor:
        """(I,), in the new order."""
        return self._statistic.value[self._order]


def find_order(scores: Tensor, keep: int, group: int) -> Tensor:
    """Order channels so that groups of neighbours, of which `keep` stay, keep high scores.

    First, channels are dealt out to the groups by the sum of their scores. Then one channel of
    each group at a time is assigned anew, so that the sum of the scores that stay is highest with
    the other channels of each group as they are (OpenReview Tr0lPx9woF).

    Args:
        scores: (O, I), higher stays.
        keep: N, less than M.
        group: M, divides I.

    Returns:
        (I,) int64, the present channel at each new place; the present order if no other that was
        tried keeps more.
    """
    count = scores.shape[1] // group
    dealt = scores.sum(0).argsort(descending=True, stable=True).view(group, count).T.contiguous()
    for slot in range(group):
        others = [place for place in range(group) if place != slot]
        # The channel in question stays in a row if it is above the N-th highest of the others.
        rest = scores[:, dealt[:, others]]  # (O, groups, M - 1)
        bar = rest.topk(keep, dim=2).values[:, :, -1]
        candidates = scores[:, dealt[:, slot]]
        size = max(1, _ENTRIES // candidates.numel())
        gains = [
            torch.maximum(candidates[:, None], part[:, :, None]).sum(0, dtype=torch.float64)
            for part in bar.split(size, dim=1)
        ]
        chosen = linear_sum_assignment(torch.cat(gains).cpu().numpy(), maximize=True)[1]
        dealt[:, slot] = dealt[torch.from_numpy(np.ascontiguousarray(chosen)), slot]
    order = dealt.flatten()
    found, present = (kept_sum(s, keep, group) for s in (scores[:, order], scores))
    return order if found > present else torch.arange(len(order), device=order.device)


def kept_sum(scores: Tensor, keep: int, group: int) -> float:
    """Sum the `keep` highest scores of each `group` neighbours of (O, I)."""
    return float(scores.unflatten(1, (-1, group)).topk(keep, dim=2).values.double().sum())

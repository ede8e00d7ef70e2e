"""Tools of the tests of `Budget`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.pruners import Budget
from prunelit.pruners.model_choice import Choice


class Noting(Budget):
    """Note what was measured."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.found: list[list[float]] = []

    def settle(self, model: PreTrainedModel, changes: Sequence[float]) -> bool:
        self.found.append([*changes])
        return super().settle(model, changes)

    @property
    def choice(self) -> Choice:
        assert self._chosen is not None
        return self._chosen


@torch.no_grad()
def divergence(
    dense: PreTrainedModel,
    model: PreTrainedModel,
    padded: dict[str, Tensor],
    chosen: Tensor | None = None,
) -> float:
    positions = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    p, q = (
        one(**padded, position_ids=positions).logits.double().log_softmax(-1)
        for one in (dense, model)
    )
    real = padded["attention_mask"].bool() if chosen is None else chosen
    return float((p.exp() * (p - q)).sum(-1)[real].mean())
